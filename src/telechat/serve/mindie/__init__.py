"""The routes of a MindIE service: its forms of TGI, vLLM, Triton and chat requests, and its own."""
