package main

import (
	"testing"
	"time"

	"nemoclaw/egress/audit"
)

// The oldest logs of what has ended go first, and no more of them than must.
func TestBeyond(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	logs := []audit.Stored{
		{File: "a", Size: 10, Last: day(1)}, {File: "b", Size: 20, Last: day(2), Lives: true},
		{File: "c", Size: 30, Last: day(3)}, {File: "d", Size: 40, Last: day(4)},
	}
	for _, c := range []struct {
		before time.Time
		total  int64
		want   string
	}{
		{time.Time{}, 100, ""}, {time.Time{}, 99, "a"}, {time.Time{}, 90, "a"}, {time.Time{}, 89, "ac"}, {time.Time{}, 0, "acd"},
		{day(1), 100, ""}, {day(2), 100, "a"}, {day(4), 100, "ac"}, {day(2), 60, "ac"}, {day(9), 100, "acd"},
	} {
		got := ""
		for _, log := range beyond(logs, c.before, c.total) {
			got += log.File
		}
		if got != c.want {
			t.Errorf("before %s and beyond %d: %q, want %q", c.before.Format(time.DateOnly), c.total, got, c.want)
		}
	}
}
