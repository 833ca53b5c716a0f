"""Backups that others make: reading their repositories, choosing what to verify, and how long
ago each file was last verified. Nothing here ever writes into a repository."""
