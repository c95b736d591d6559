"""What a run leaves behind: its record and the rows that were chosen."""
