"""To look at: contact sheet, pages, live status."""
