"""The page: its own process, which asks the sink's API and shows what it answers. It changes nothing."""
