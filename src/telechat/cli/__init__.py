"""The `telechat` command: one thin file per verb, imported only when that verb is used."""
