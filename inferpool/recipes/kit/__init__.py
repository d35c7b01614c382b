"""What recipes share: data by hash, figures with intervals, drift, audits, reports, the pool."""
