"""The consumer's door: admits, chooses, pays, sends, watches, settles."""
