"""What makes the report: the published experiments, the search, measurements, tables and figures."""
