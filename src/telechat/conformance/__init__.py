"""Does a server behave as OpenAI's clients expect? Checks over plain HTTP, for ours and for any other."""
