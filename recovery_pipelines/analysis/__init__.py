"""What the drills so far say together: baselines, trends, anomalies, and what they prove."""
