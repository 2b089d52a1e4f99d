"""Models over several ranks: which part of every tensor a rank holds, and the executor that runs them."""
