"""Linear recurrences with a decay per channel: functions and their forms."""
