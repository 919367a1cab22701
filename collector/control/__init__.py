"""The collector's only ear: a Unix socket for policy and mode, one JSON line a request, one a reply."""
