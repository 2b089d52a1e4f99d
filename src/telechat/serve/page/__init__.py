"""The chat page: a static single page and the small process that serves it.

Import `create_page_app` from `telechat.serve.page.app`; this package file imports nothing, so that importing
`telechat.serve` stays free.
"""
