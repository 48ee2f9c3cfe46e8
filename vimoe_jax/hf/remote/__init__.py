"""Files that travel with an export; they are copied, and never imported from here."""
