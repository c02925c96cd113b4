"""The SENSORIUM benchmark's production system: from the microscope to the ranking table."""
