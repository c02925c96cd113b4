import os

# Where no server is named, Prefect would start one of its own, which outlives a process that is killed.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_ENABLED", "false")
