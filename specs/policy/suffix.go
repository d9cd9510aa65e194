package policy

import (
	_ "embed" // suffixes.txt
	"slices"
	"strings"
)

// suffixes are the rules of the Public Suffix List, its private section
// included: one a line, labels in reverse ("uk.co"), sorted by bytes, below
// one line of comment. "go test -update" writes the file from the copy that
// golang.org/x/net/publicsuffix carries. That package itself is not linked: it
// brings net/http, which costs every start of a runtime more than a
// millisecond.
//
//go:embed suffixes.txt
var suffixes string

// openBelow returns the domain, name itself or for "**." one below it, in
// which anyone can register names that the wildcard over name would match; it
// returns "" if there is none.
//
// The list (publicsuffix.org/list) holds names ("uk.co"), names of which every
// child is public too ("ck.*"), and exceptions of these ("ck.!www"). A top
// level domain that it lacks counts as public.
func openBelow(w wildcard, name string) string {
	labels := strings.Split(name, ".")
	slices.Reverse(labels)
	reversed := strings.Join(labels, ".")
	last := len(labels) - 1
	parent := strings.Join(labels[:last], ".")
	switch {
	case last == 0, hasSuffixRule(reversed), hasSuffixRule(reversed + ".*"):
		return name
	case hasSuffixRule(parent+".*") && !hasSuffixRule(parent+".!"+labels[last]):
		return name
	}
	line := suffixFrom(reversed + ".")
	if w != subdomain || !strings.HasPrefix(line, reversed+".") {
		return ""
	}
	below := strings.Split(strings.TrimLeft(line, "!"), ".")
	slices.Reverse(below)
	return strings.Join(below, ".")
}

func hasSuffixRule(reversed string) bool { return suffixFrom(reversed) == reversed }

// suffixFrom returns the first line of suffixes that is not less than want.
func suffixFrom(want string) string {
	low, high := 0, len(suffixes) // offsets at which lines begin; the answer is between
	for low < high {
		middle := low + (high-low)/2
		start := 1 + strings.LastIndexByte(suffixes[:middle], '\n')
		line, _, _ := strings.Cut(suffixes[start:], "\n")
		if line < want {
			low = start + len(line) + 1
		} else {
			high = start
		}
	}
	line, _, _ := strings.Cut(suffixes[low:], "\n")
	return line
}
