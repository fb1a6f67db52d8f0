"""Deploys without end: workers are replaced by SIGTERM under load; each task ends once."""
