package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// page is what the demo prints: chapters of lines, each of which came out as it
// should or did not.
type page struct {
	w          io.Writer
	colours    bool
	good, bad  string // marks
	lines      int
	deviations int
}

// newPage returns a page for w: signs and colours are for terminals, and
// colours not where NO_COLOR is set (no-color.org).
func newPage(w io.Writer) *page {
	p := &page{w: w, good: "ok", bad: "NO"}
	f, ok := w.(*os.File)
	if !ok {
		return p
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return p
	}
	p.colours = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if isUTF8() {
		p.good, p.bad = "✓", "✗"
	}
	return p
}

// isUTF8 reads the locale as setlocale(3) does: the first that is set counts.
func isUTF8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// Colours (ECMA-48, SGR).
const (
	bold  = "1"
	faint = "2"
	red   = "1;31"
	green = "32"
	cyan  = "36"
)

func (p *page) paint(colour, text string) string {
	if !p.colours || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// chapter begins a part.
func (p *page) chapter(title string) { fmt.Fprintf(p.w, "\n%s\n", p.paint(bold, title)) }

// does says what is done outside of the sandbox.
func (p *page) does(what string) { fmt.Fprintf(p.w, "   %s\n", p.paint(faint, what)) }

// line is one thing that was tried.
type line struct {
	tried  string
	layer  layer  // that answered, as the evidence has it
	answer string // what came back
	want   layer  // that should have answered
	good   bool   // the answer is the one that there should be
}

// add prints a line and remembers whether it is as it should be.
func (p *page) add(l line) {
	mark := p.paint(green, p.good)
	p.lines++
	if !l.good || l.layer != l.want {
		mark = p.paint(red, p.bad)
		p.deviations++
	}
	// The column's width is counted before colours are added to it.
	fmt.Fprintf(p.w, "%s %-40s %s %s\n", mark, l.tried, p.paint(cyan, fmt.Sprintf("%-9s", l.layer)), printable(l.answer))
}

// close prints the sum.
func (p *page) close(took time.Duration) {
	sum := p.paint(green, fmt.Sprintf("all %d lines are as they should be", p.lines))
	if p.deviations > 0 {
		sum = p.paint(red, fmt.Sprintf("%d of %d lines are not as they should be", p.deviations, p.lines))
	}
	fmt.Fprintf(p.w, "\n%s, after %.1f s\n", sum, took.Seconds())
}

// printable keeps what the sandbox wrote to one line that moves no cursor.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
}
