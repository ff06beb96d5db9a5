"""Files that clients upload, and batches: files of requests that are answered while clients are away."""
