"""What a run notes besides its numbers, so that a report can show why they are so. Changes no training number."""
