"""Long campaigns that try to make a drill lie or leave something behind: `make campaign`."""
