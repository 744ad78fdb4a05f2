"""The paper's comparisons at a size that one machine affords, from one plan: trained, judged, and written as a page."""
