"""What a file of documents' labels costs, and how its labels compare with what else a user could store."""
