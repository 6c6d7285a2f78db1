"""The command line's verbs, one a file: what it takes (`add`) and what it does (`run`)."""
