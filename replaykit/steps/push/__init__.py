"""Where replay leaves the machine: a data set card, parquet files, and the Hub."""
