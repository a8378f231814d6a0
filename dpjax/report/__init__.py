"""What a person looks at: one page of all that a run has left."""
