"""What a run leaves behind and what it is turned into: run directories and exports."""
