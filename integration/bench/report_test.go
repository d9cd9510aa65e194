package main

import (
	"math"
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name    string
		more    bool
		ours    series
		theirs  []float64
		verdict string
	}{
		{"twice the time is too much", false, series{Samples: []float64{20, 20}, Bar: 1.15, Aim: 1}, []float64{10, 10}, "MISSED"},
		{"a tenth more keeps the bar", false, series{Samples: []float64{11, 11}, Bar: 1.15, Aim: 1}, []float64{10, 10}, "ok"},
		{"half the time reaches the aim", false, series{Samples: []float64{5, 5}, Bar: 1.15, Aim: 1}, []float64{10, 10}, "ok, aim reached"},
		{"of rates more is better", true, series{Samples: []float64{20, 20}, Bar: 0.9, Aim: 1.2}, []float64{10, 10}, "ok, aim reached"},
		{"and less is worse", true, series{Samples: []float64{5, 5}, Bar: 0.9, Aim: 1.2}, []float64{10, 10}, "MISSED"},
		{"a slow round is slow for both", false, series{Samples: []float64{11, 110, 11}, Bar: 1.15}, []float64{10, 100, 10}, "ok"},
		{"by the best, ticks do not count", false, series{Samples: []float64{16, 32, 32}, Bar: 1.1, ByBest: true}, []float64{16, 16, 16}, "ok"},
		{"an absolute bar needs nobody", false, series{Samples: []float64{13}, Bar: 12, Absolute: true}, nil, "MISSED"},
		{"without a reference nothing is said", false, series{Samples: []float64{13}, Bar: 12}, nil, "no reference"},
		{"nor without a promise", false, series{Samples: []float64{13}}, []float64{10}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.ours.Name, c.ours.Against = "ours", "theirs"
			tab := table{More: c.more, Rows: []series{c.ours, {Name: "theirs", Samples: c.theirs}}}
			if got := tab.verdict(c.ours); got != c.verdict {
				t.Errorf("verdict %q, want %q", got, c.verdict)
			}
		})
	}
}

func TestQuantile(t *testing.T) {
	samples := []float64{4, 1, 3, 2}
	less, more := table{}, table{More: true}
	for _, c := range []struct {
		t         table
		q, wanted float64
	}{{less, 0, 1}, {less, 0.5, 2.5}, {less, 1, 4}, {more, 0, 4}, {more, 0.5, 2.5}, {more, 1, 1}} {
		if got := c.t.quantile(samples, c.q); math.Abs(got-c.wanted) > 1e-9 {
			t.Errorf("more=%v: quantile %v is %v, want %v", c.t.More, c.q, got, c.wanted)
		}
	}
}

// A row that could not be measured says why, and bends no column.
func TestMarkdown(t *testing.T) {
	var b strings.Builder
	tab := table{Title: "A title", Unit: "ms", Rows: []series{{Name: "ours", Samples: []float64{1}}, {Name: "theirs", Note: "not installed"}}}
	if err := tab.markdown(&b); err != nil {
		t.Fatal(err)
	}
	columns := 0
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		if n := strings.Count(line, "|"); columns == 0 {
			columns = n
		} else if n != columns {
			t.Errorf("%d columns instead of %d: %s", n, columns, line)
		}
	}
	if !strings.Contains(b.String(), "not installed") {
		t.Errorf("no reason in:\n%s", b.String())
	}
}

func TestParse(t *testing.T) {
	var stderr strings.Builder
	if _, err := parse([]string{"bench", "-only", "net,speed"}, &stderr); err == nil || !strings.Contains(stderr.String(), `"speed"`) {
		t.Errorf("an unknown part is told as %v, %q", err, stderr.String())
	}
	o, err := parse([]string{"bench", "-only", "net,files", "-rounds", "0"}, &stderr)
	if err != nil || o.rounds != 1 || len(o.only) != 2 {
		t.Errorf("parsed %+v, %v", o, err)
	}
}
