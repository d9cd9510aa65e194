package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// printable replaces what could move a cursor, change a colour or turn the
// direction of writing: programs in sandboxes choose host names, and those of programs.
// Line feeds stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// cell is printable text on one line.
func cell(s string) string {
	return strings.NewReplacer("\n", " ", "\t", " ").Replace(printable(s))
}

// table prints rows in aligned columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i := range row {
			row[i] = cell(row[i])
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	return t.Flush()
}

// printJSON prints v with every character escaped that printable replaces: a
// person may look at it all the same.
func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, r := range string(b) {
		if r == '\n' || unicode.IsPrint(r) {
			text.WriteRune(r)
			continue
		}
		for _, u := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&text, `\u%04x`, u)
		}
	}
	_, err = fmt.Fprintln(w, text.String())
	return err
}

// loud makes text stand out where a person reads it.
func loud(w io.Writer, text string) string {
	if !isTerminal(w) {
		return text
	}
	return "\x1b[1;31m" + text + "\x1b[0m"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// ago is how long ago t was, roughly.
func ago(t time.Time) string {
	switch d := time.Since(t); {
	case t.IsZero():
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(max(d, 0).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// who is a process in few words, with a question mark if it may be another.
func who(p *control.Process) string {
	if p == nil {
		return "-"
	}
	name := cmp.Or(p.Exe, p.Name, "?")
	doubt := ""
	if p.Unsure != "" {
		doubt = "?"
	}
	return fmt.Sprintf("%s[%d]%s", name, p.PID, doubt)
}

func sortSandboxes(list []*sandbox) {
	slices.SortFunc(list, func(a, b *sandbox) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.dir, b.dir)) })
}
