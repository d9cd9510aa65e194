package policy

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Fault is one thing that is wrong in a policy file, where a person must edit.
type Fault struct {
	File      string
	Line, Col int    // from 1; Col counts characters
	Msg       string // one sentence, with the words that were possible
	Text      string // the line itself, without its end
}

// Error returns "file:line:col: message".
func (f *Fault) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Col, f.Msg)
}

// shownWidth bounds, in characters, how much of a long line a Snippet shows.
const shownWidth = 100

// Snippet returns the faulty line and below it a caret under the column, each
// with a line end. It is printable: what is not becomes a question mark.
func (f *Fault) Snippet() string {
	text := []rune(strings.Map(printable, f.Text))
	col := min(max(f.Col-1, 0), len(text))
	start := 0
	if len(text) > shownWidth {
		start = min(max(0, col-shownWidth/2), len(text)-shownWidth)
		text = text[start : start+shownWidth]
	}
	n := fmt.Sprint(f.Line)
	pad := strings.Repeat(" ", len(n))
	return fmt.Sprintf("%s |\n%s | %s\n%s | %s^\n", pad, n, string(text), pad, strings.Repeat(" ", col-start))
}

// printable keeps every character one column wide or so, for the caret.
func printable(r rune) rune {
	switch {
	case r == '\t':
		return ' '
	case r == utf8.RuneError || !unicode.IsPrint(r):
		return '?'
	}
	return r
}

// Faults are all the faults of a file, in the order in which they stand.
type Faults []*Fault

// Error returns every fault with its line and a caret.
func (fs Faults) Error() string {
	var b strings.Builder
	for _, f := range fs {
		b.WriteString(f.Error() + "\n" + f.Snippet())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Unwrap lets errors.As find a *Fault.
func (fs Faults) Unwrap() []error {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f
	}
	return errs
}
