"""Models in and out: from and to the formats of other projects."""
