package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// table is what one part of the run found out.
type table struct {
	Title string `json:"title"`
	Notes string `json:"notes,omitempty"`
	Unit  string `json:"unit"`
	// More says that more is better, as of rates; else less is.
	More bool     `json:"more_is_better,omitempty"`
	Rows []series `json:"rows"`
}

// series are the samples of one contestant, one a round. A row without samples
// says in Note why.
type series struct {
	Name    string    `json:"name"`
	Samples []float64 `json:"samples"`
	Note    string    `json:"note,omitempty"`

	// Against names the row that this one is compared with, or is empty.
	Against string `json:"against,omitempty"`
	// Bar and Aim bound the ratio to Against, or the median where Absolute
	// says so. 0: nothing is promised.
	Bar      float64 `json:"bar,omitempty"`
	Aim      float64 `json:"aim,omitempty"`
	Absolute bool    `json:"absolute,omitempty"`
	// ByBest judges the ratio of the best samples, for times that fall on
	// multiples of the scheduler's tick.
	ByBest bool `json:"by_best,omitempty"`
}

// add takes a sample down.
func (t *table) add(row int, v float64) { t.Rows[row].Samples = append(t.Rows[row].Samples, v) }

// markdown prints the table for people.
func (t table) markdown(w io.Writer) error {
	best := "min"
	if t.More {
		best = "max"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n", t.Title)
	if t.Notes != "" {
		fmt.Fprintf(&b, "%s\n\n", t.Notes)
	}
	fmt.Fprintf(&b, "| %s | %s | median | p90 | n | ratio by %s | ratio by round | bar | aim | |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n", t.Unit, best, best)
	for _, s := range t.Rows {
		if len(s.Samples) == 0 {
			fmt.Fprintf(&b, "| %s | | | | | | | | | %s |\n", s.Name, s.Note)
			continue
		}
		byBest, byRound := t.ratios(s)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %d | %s | %s | %s | %s | %s |\n", s.Name,
			number(t.quantile(s.Samples, 0)), number(t.quantile(s.Samples, 0.5)), number(t.quantile(s.Samples, 0.9)), len(s.Samples),
			number(byBest), number(byRound), t.bound(s.Bar), t.bound(s.Aim), strings.TrimSpace(t.verdict(s)+" "+s.Note))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// quantile returns what the part q of the samples is no worse than, 0 for the
// best; between two samples it lies on the line that joins them.
func (t table) quantile(samples []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	if t.More {
		slices.Reverse(sorted)
	}
	at := q * float64(len(sorted)-1)
	below := int(at)
	if below == len(sorted)-1 {
		return sorted[below]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// ratios compares s with its reference: best with best, and the median of the
// rounds' own ratios. NaN where there is nothing to compare.
func (t table) ratios(s series) (byBest, byRound float64) {
	i := slices.IndexFunc(t.Rows, func(r series) bool { return r.Name == s.Against })
	if i < 0 || len(t.Rows[i].Samples) == 0 {
		return math.NaN(), math.NaN()
	}
	ref := t.Rows[i].Samples
	var rounds []float64
	for n := range min(len(ref), len(s.Samples)) {
		rounds = append(rounds, s.Samples[n]/ref[n])
	}
	return t.quantile(s.Samples, 0) / t.quantile(ref, 0), t.quantile(rounds, 0.5)
}

// verdict says whether s keeps its bar and reaches its aim.
func (t table) verdict(s series) string {
	if s.Bar == 0 {
		return ""
	}
	byBest, judged := t.ratios(s)
	switch {
	case s.Absolute:
		judged = t.quantile(s.Samples, 0.5)
	case s.ByBest:
		judged = byBest
	}
	switch {
	case math.IsNaN(judged):
		return "no reference"
	case !t.within(judged, s.Bar):
		return "MISSED"
	case s.Aim != 0 && t.within(judged, s.Aim):
		return "ok, aim reached"
	}
	return "ok"
}

func (t table) within(got, bound float64) bool {
	if t.More {
		return got >= bound
	}
	return got <= bound
}

func (t table) bound(v float64) string {
	if v == 0 {
		return ""
	}
	if t.More {
		return "≥ " + number(v)
	}
	return "≤ " + number(v)
}

func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return ""
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
