"""Where the images of a shard come from, rendered or imported: screened, tried again, encoded."""
