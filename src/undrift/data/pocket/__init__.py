"""The pocket benchmark: ten small visual tasks on real data that ships inside Python packages."""
