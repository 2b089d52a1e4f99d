"""Losses over final hidden states: chunked cross-entropy and one file per preference loss."""
