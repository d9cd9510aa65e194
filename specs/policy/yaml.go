package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// Bounds of a policy file. Aliases can make a small file a large document
// (every mention counts), hence maxValues.
const (
	maxSource = 1 << 20 // bytes
	maxValues = 1 << 20
	maxFaults = 50 // told at once
)

// parser collects the faults of one file while it is walked.
type parser struct {
	file   string
	lines  []string
	values int // walked so far
	faults Faults
}

func newParser(file string, src []byte) *parser {
	return &parser{file: file, lines: strings.Split(string(src), "\n")}
}

// faultAt records a fault at a line and column, both from 1.
func (p *parser) faultAt(line, col int, format string, args ...any) {
	f := &Fault{File: p.file, Line: line, Col: col, Msg: fmt.Sprintf(format, args...)}
	if line <= len(p.lines) {
		f.Text = strings.TrimSuffix(p.lines[line-1], "\r")
	}
	p.faults = append(p.faults, f)
}

func (p *parser) fault(n *yaml.Node, format string, args ...any) {
	p.faultAt(n.Line, n.Column, format, args...)
}

// err returns the faults in the order in which they stand, or nil.
func (p *parser) err() error {
	if len(p.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(p.faults, func(a, b *Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	if more := len(p.faults) - maxFaults; more > 0 {
		p.faults = p.faults[:maxFaults]
		p.faults[maxFaults-1].Msg += fmt.Sprintf(" (and %d more faults)", more)
	}
	return p.faults
}

// document returns the one value of the file, or nil after a fault.
func (p *parser) document(src []byte) *yaml.Node {
	if len(src) > maxSource {
		p.faultAt(1, 1, "the file has %d bytes; a policy has at most %d", len(src), maxSource)
		return nil
	}
	if !utf8.Valid(src) {
		line := slices.IndexFunc(p.lines, func(s string) bool { return !utf8.ValidString(s) })
		p.faultAt(line+1, 1, "the line is not UTF-8")
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	switch {
	case errors.Is(err, io.EOF), err == nil && isNull(doc.Content[0]):
		p.faultAt(1, 1, "the policy is empty; to allow no connection write \"egress: {rules: []}\"")
		return nil
	case err != nil:
		p.syntax(err)
		return nil
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		p.fault(&more, "a second document begins; a policy is one document")
		return nil
	case !errors.Is(err, io.EOF):
		p.syntax(err)
		return nil
	}
	return doc.Content[0]
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// syntax turns an error of the YAML library into a fault. It names a line at
// most.
func (p *parser) syntax(err error) {
	msg, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		msg = msg[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = min(max(n, 1), len(p.lines))
		}
	}
	text := p.lines[line-1]
	col := 1 + len(text) - len(strings.TrimLeft(text, " \t"))
	hint := ""
	if strings.Contains(text, ": *") {
		hint = " (a wildcard needs quotes, as in \"*.example.org\")"
	}
	p.faultAt(line, col, "not YAML: %s%s", strings.TrimPrefix(msg, "yaml: "), hint)
}

// resolve follows an alias, and refuses what has no place in a policy.
func (p *parser) resolve(n *yaml.Node) (*yaml.Node, bool) {
	n = follow(n)
	if p.values++; p.values >= maxValues {
		if p.values == maxValues {
			p.fault(n, "the file's aliases expand to more than %d values", maxValues)
		}
		return n, false
	}
	if n.Style&yaml.TaggedStyle != 0 {
		p.fault(n, "the tag %s is not supported; leave it out", n.Tag)
		return n, false
	}
	return n, true
}

// follow returns the node that an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// field is one key of a mapping, and what reads its value.
type field struct {
	key    string
	read   func(*yaml.Node)
	hidden bool // read refuses it, and it is not told as known
}

// later returns fields that a later version will know and this one refuses.
func (p *parser) later(what string, keys ...string) []field {
	fields := make([]field, len(keys))
	for i, key := range keys {
		fields[i] = field{key: key, hidden: true, read: func(n *yaml.Node) {
			p.fault(n, "%s: %s is not supported by this version; take it out", what, key)
		}}
	}
	return fields
}

// mapping reads n's entries by the fields and returns the nodes of the keys
// that it met. What names the mapping in faults.
func (p *parser) mapping(n *yaml.Node, what string, fields []field) map[string]*yaml.Node {
	n, ok := p.resolve(n)
	switch {
	case !ok:
		return nil
	case isNull(n):
		p.fault(n, "%s has nothing after it; leave it out to have the defaults", what)
		return nil
	case n.Kind != yaml.MappingNode:
		p.fault(n, "%s must be a mapping (known keys: %s)", what, strings.Join(known(fields), ", "))
		return nil
	}
	seen := map[string]*yaml.Node{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if first, twice := seen[key.Value]; twice {
			p.fault(key, "%s: the key %q is already on line %d", what, key.Value, first.Line)
			continue
		}
		if p.readField(key, value, what, fields) {
			seen[key.Value] = key
		}
	}
	return seen
}

// readField reads one entry of a mapping and tells whether its key is one.
func (p *parser) readField(key, value *yaml.Node, what string, fields []field) bool {
	switch {
	case key.Kind != yaml.ScalarNode:
		p.fault(key, "%s: a key must be a word (known: %s)", what, strings.Join(known(fields), ", "))
		return false
	case key.Tag == "!!merge":
		p.fault(key, "%s: merge keys (<<) are not supported; write the keys out", what)
		return false
	}
	i := slices.IndexFunc(fields, func(f field) bool { return f.key == key.Value })
	switch {
	case i < 0:
		p.fault(key, "%s: unknown key %q (%s)", what, key.Value, possible(key.Value, known(fields)))
	default:
		fields[i].read(value)
	}
	return true
}

func known(fields []field) []string {
	var keys []string
	for _, f := range fields {
		if !f.hidden {
			keys = append(keys, f.key)
		}
	}
	return keys
}

// list reads n's items. What names the list in faults.
func (p *parser) list(n *yaml.Node, what string, read func(*yaml.Node)) {
	n, ok := p.resolve(n)
	switch {
	case !ok:
	case isNull(n):
		p.fault(n, "%s has nothing after it; for none write \"%s: []\"", what, what[strings.LastIndexByte(what, '.')+1:])
	case n.Kind != yaml.SequenceNode:
		p.fault(n, "%s must be a list, also of one: [...]", what)
	default:
		for _, item := range n.Content {
			read(item)
		}
	}
}

// text returns a scalar as it is written.
func (p *parser) text(n *yaml.Node, what string) (*yaml.Node, string, bool) {
	n, ok := p.resolve(n)
	switch {
	case !ok:
		return n, "", false
	case isNull(n), n.Kind == yaml.ScalarNode && n.Value == "":
		p.fault(n, "%s has nothing after it", what)
		return n, "", false
	case n.Kind != yaml.ScalarNode:
		p.fault(n, "%s must be one value", what)
		return n, "", false
	}
	return n, n.Value, true
}

// boolean sets b from n.
func (p *parser) boolean(n *yaml.Node, what string, b *bool) {
	n, s, ok := p.text(n, what)
	if !ok {
		return
	}
	if n.Tag != "!!bool" {
		p.fault(n, "%s must be true or false, not %q", what, s)
		return
	}
	*b = strings.EqualFold(s, "true")
}

// choice returns n's value if it is one of the words, else the first of them.
func (p *parser) choice(n *yaml.Node, what string, words ...string) string {
	n, s, ok := p.text(n, what)
	if ok && slices.Contains(words, s) {
		return s
	}
	if ok {
		p.fault(n, "%s: unknown value %q (%s)", what, s, possible(s, words))
	}
	return words[0]
}

// possible says which words there are, the likeliest first if there is one.
func possible(word string, words []string) string {
	best, least := "", 3 // two typing errors
	for _, w := range words {
		if d := distance(strings.ToLower(word), strings.ToLower(w)); d < least && d < len(w) {
			best, least = w, d
		}
	}
	list := "known: " + strings.Join(words, ", ")
	switch {
	case best == "" && len(words) > 100: // of such only system calls are so many
		return "syscalls(2) lists them"
	case best == "":
		return list
	case len(words) > 12: // too many to read
		return fmt.Sprintf("did you mean %s?", best)
	}
	return fmt.Sprintf("did you mean %s? %s", best, list)
}

// distance is Levenshtein's: insertions, deletions and replacements of bytes.
// Words too different in length are as good as infinitely far apart.
func distance(a, b string) int {
	if d := len(a) - len(b); d > 2 || d < -2 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
