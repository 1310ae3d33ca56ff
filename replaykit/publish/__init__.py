"""Where replay leaves the machine: a dataset card, parquet files, and the Hub."""
