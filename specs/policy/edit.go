package policy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"
)

// ErrAlready is why AddRule and AddDeny change nothing: the policy says it now, and
// does not cease to.
var ErrAlready = errors.New("the policy says so already")

// The lists below egress that rules are added to.
const (
	listRules = "rules"
	listDeny  = "deny"
)

// AddRule returns src, a policy file, with one rule more: host, which may be a
// name, a wildcard or an address, on port. Not one other byte differs. The
// comment, if any, stands beside the rule where the layout has room for one;
// what is not printable in it becomes a space.
//
// A file without egress.rules has the built-in ones; they are written out with
// the new one, so that they stay. An empty file, or one of comments, gets the
// new rule alone.
//
// The result was parsed, and says what src said and the one rule; where that
// cannot be had, the error's text holds the lines to paste. If the rule would
// change nothing the error is ErrAlready, or names the deny rule in its way.
func AddRule(src []byte, host string, port uint16, comment string) ([]byte, error) {
	return add(src, listRules, host, port, comment)
}

// AddDeny does the same for a rule of egress.deny. Where egress.rules are the
// built-in ones they stay so. An empty file, or one of comments, then allows
// nothing.
func AddDeny(src []byte, host string, port uint16, comment string) ([]byte, error) {
	return add(src, listDeny, host, port, comment)
}

func add(src []byte, list, host string, port uint16, comment string) ([]byte, error) {
	rule, err := newRule(list, host, port)
	if err != nil {
		return nil, fmt.Errorf("cannot add a rule for %q: %w", host, err)
	}
	want, err := wanted(src, list, rule)
	if err != nil {
		return nil, err
	}
	e := newEditor(src, list, rule, comment)
	for _, c := range e.candidates() {
		if out := c.apply(src); means(out, want) {
			return out, nil
		}
	}
	return nil, fmt.Errorf("cannot add the rule to a file of this layout; paste it below egress.%s:\n%s", list, e.blockItem("  ", "\n"))
}

// newRule returns the rule to add, if a list of a policy could hold it.
func newRule(list, host string, port uint16) (Rule, error) {
	r := Rule{Ports: []PortRange{{port, port}}}
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap().WithZone("")
		r.CIDR = netip.PrefixFrom(addr, addr.BitLen())
	} else {
		w, literal := splitHost(host)
		name, err := NormalHost(literal)
		if err != nil {
			return r, err
		}
		r.Host = string(w) + name
	}
	_, err := Parse("rule", []byte("egress: {"+list+": ["+flowItem(r)+"]}"))
	var f *Fault
	if errors.As(err, &f) {
		return r, errors.New(f.Msg)
	}
	return r, nil
}

// forEver is when every rule has ended that ends at all (RFC 3339 has four digits
// for a year).
var forEver = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// wanted returns the policy that src has with the rule added.
func wanted(src []byte, list string, rule Rule) (*Policy, error) {
	if isEmpty(src) {
		src = []byte("egress: {rules: []}")
	}
	p, err := Parse("policy", src)
	if err != nil {
		return nil, fmt.Errorf("cannot add a rule to a policy that has faults:\n%w", err)
	}
	// What it says for ever, and what it denies for now.
	v := p.decideRule(rule, forEver)
	if list == listRules && v.Allow && v.Would == "" || list == listDeny && v.Reason == Denied {
		return nil, fmt.Errorf("cannot add %s: %w (%s)", rule, ErrAlready, writtenAt(v.Rule))
	}
	if v := p.decideRule(rule, time.Now()); list == listRules && v.Reason == Denied {
		return nil, fmt.Errorf("cannot add %s: a deny rule beats every other (%s)", rule, writtenAt(v.Rule))
	}
	if list == listDeny {
		p.Egress.Deny = append(p.Egress.Deny, rule)
	} else {
		p.Egress.Rules = append(p.Egress.Rules, rule)
	}
	return p, nil
}

func writtenAt(r *Rule) string {
	if r.Line == 0 {
		return "built-in"
	}
	return fmt.Sprintf("line %d", r.Line)
}

// decideRule says what the policy already makes of all that a new rule, for
// one port, matches.
func (p *Policy) decideRule(r Rule, now time.Time) Verdict {
	if r.CIDR.IsValid() {
		return p.DecideAddr(r.CIDR.Addr(), r.Ports[0].First, Owner{}, now)
	}
	w, literal := splitHost(r.Host)
	if w == exact {
		return p.Decide(r.Host, r.Ports[0].First, Owner{}, now)
	}
	return p.match.decide(query{port: r.Ports[0].First, now: now, unlisted: NotListed,
		find: func(t *table, wanted func(*Rule) bool) *Rule { return first(t.hosts[w][literal], wanted) }})
}

// isEmpty tells whether src is YAML that holds no value.
func isEmpty(src []byte) bool {
	var doc yaml.Node
	return yaml.Unmarshal(src, &doc) == nil && (doc.Kind == 0 || isNull(doc.Content[0]))
}

// means tells whether src parses and says the same as want.
func means(src []byte, want *Policy) bool {
	got, err := Parse("policy", src)
	return err == nil && reflect.DeepEqual(got.meaning(), want.meaning())
}

// meaning returns a copy without what says where things are written.
func (p *Policy) meaning() *Policy {
	m := *p
	m.File, m.Digest, m.match = "", "", nil
	m.Filesystem.ReadOnly = unlined(p.Filesystem.ReadOnly, func(x *Path) { x.Line = 0 })
	m.Filesystem.ReadWrite = unlined(p.Filesystem.ReadWrite, func(x *Path) { x.Line = 0 })
	m.Seccomp.Deny = unlined(p.Seccomp.Deny, func(x *Syscall) { x.Line = 0 })
	m.Seccomp.Allow = unlined(p.Seccomp.Allow, func(x *Syscall) { x.Line = 0 })
	m.Egress.Rules = unlined(p.Egress.Rules, func(x *Rule) { x.Line = 0 })
	m.Egress.Deny = unlined(p.Egress.Deny, func(x *Rule) { x.Line = 0 })
	return &m
}

func unlined[T any](list []T, forget func(*T)) []T {
	c := append([]T{}, list...)
	for i := range c {
		forget(&c[i])
	}
	return c
}

// splice is text to insert at an offset; splices is some, by rising offset.
type splice struct {
	at   int
	text string
}

type splices []splice

func (ss splices) apply(src []byte) []byte {
	var out []byte
	done := 0
	for _, s := range ss {
		out = append(append(out, src[done:s.at]...), s.text...)
		done = s.at
	}
	return append(out, src[done:]...)
}

// editor proposes where a rule may go. It looks at positions and characters
// only and may be wrong: what it proposes is parsed and compared.
type editor struct {
	src     []byte
	list    string // below egress
	rule    Rule
	comment string // "  # text" or empty
	newline string
	starts  []int // offset of each line, and of the end
}

// maxTries bounds the places that are tried for one rule; each is a parse.
const maxTries = 16

func newEditor(src []byte, list string, rule Rule, comment string) *editor {
	e := &editor{src: src, list: list, rule: rule, newline: "\n", starts: []int{0}}
	for i, c := range src {
		if c == '\n' {
			e.starts = append(e.starts, i+1)
		}
	}
	if last := len(e.starts) - 1; e.starts[last] < len(src) {
		e.starts = append(e.starts, len(src))
	}
	if i := bytes.IndexByte(src, '\n'); i > 0 && src[i-1] == '\r' {
		e.newline = "\r\n"
	}
	comment = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, comment)
	if words := strings.Fields(comment); len(words) > 0 {
		e.comment = "  # " + strings.Join(words, " ")
	}
	return e
}

// candidates returns the changes to try, the nicest first.
func (e *editor) candidates() []splices {
	var doc yaml.Node
	if yaml.Unmarshal(e.src, &doc) != nil {
		return nil
	}
	if doc.Kind == 0 || isNull(doc.Content[0]) {
		text := "egress:" + e.newline
		if e.list == listDeny {
			text += "  rules: []" + e.newline
		}
		return e.atEnd(text + "  " + e.list + ":" + e.newline + e.blockItem("    ", e.newline))
	}
	root := doc.Content[0]
	_, egress := entry(root, "egress")
	if egress == nil {
		return e.newEgress(root)
	}
	_, rules := entry(egress, e.list)
	switch {
	case rules == nil:
		return e.newList(root, egress)
	case rules.Style&yaml.FlowStyle != 0 || len(rules.Content) == 0:
		return e.intoFlow(rules)
	}
	return e.afterBlock(rules)
}

// entry returns a key of a mapping and the value that it has, or nil.
func entry(m *yaml.Node, key string) (*yaml.Node, *yaml.Node) {
	if m.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i], follow(m.Content[i+1])
		}
	}
	return nil, nil
}

// newEgress writes egress with the list.
func (e *editor) newEgress(root *yaml.Node) []splices {
	if root.Style&yaml.FlowStyle != 0 || len(root.Content) == 0 {
		return e.intoFlowMapping(root, "egress: {"+e.flowList()+"}")
	}
	indent := strings.Repeat(" ", root.Content[0].Column-1)
	return e.atEnd(indent + "egress:" + e.newline + e.blockList(indent+"  "))
}

// newList writes the list at the head of egress; denials rather at its end.
func (e *editor) newList(root, egress *yaml.Node) []splices {
	if egress.Style&yaml.FlowStyle != 0 || len(egress.Content) == 0 {
		return e.intoFlowMapping(egress, e.flowList())
	}
	key, _ := entry(root, "egress")
	indent := strings.Repeat(" ", egress.Content[0].Column-1)
	head := splices{e.afterLine(key.Line, e.blockList(indent))}
	if e.list == listRules {
		return []splices{head}
	}
	return append(e.below(lastLine(egress), indent, e.blockList(indent)), head)
}

// afterBlock adds an item to a list in block style. The end of the last item
// is not known, since a scalar may go on for lines, but cannot be far.
func (e *editor) afterBlock(rules *yaml.Node) []splices {
	last := rules.Content[len(rules.Content)-1]
	indent, ok := e.dash(last.Line)
	if !ok {
		return nil
	}
	return e.below(lastLine(last), indent, e.blockItem(indent, e.newline))
}

// below tries text behind a line, with the comments that stand deeper than
// indent: they are about what is there.
func (e *editor) below(line int, indent, text string) []splices {
	for e.isCommentDeeper(line+1, indent) {
		line++
	}
	var tries []splices
	for ; len(tries) < maxTries && line < len(e.starts); line++ {
		tries = append(tries, splices{e.afterLine(line, text)})
	}
	return tries
}

// dash returns the white space before the dash of the item on the line, or
// above it.
func (e *editor) dash(line int) (string, bool) {
	for ; line >= 1; line-- {
		text := e.line(line)
		if trimmed := strings.TrimLeft(text, " "); strings.HasPrefix(trimmed, "-") {
			return text[:len(text)-len(trimmed)], true
		}
	}
	return "", false
}

// lastLine returns the last line on which a part of n begins.
func lastLine(n *yaml.Node) int {
	line := n.Line
	for _, c := range n.Content {
		line = max(line, lastLine(c))
	}
	return line
}

func (e *editor) isCommentDeeper(line int, indent string) bool {
	text := e.line(line)
	trimmed := strings.TrimLeft(text, " ")
	return strings.HasPrefix(trimmed, "#") && len(text)-len(trimmed) > len(indent)
}

// intoFlow adds an item before the bracket that ends a list in flow style.
// Which bracket does is found by trying.
func (e *editor) intoFlow(rules *yaml.Node) []splices {
	at := e.offset(rules)
	if n := len(rules.Content); n > 0 {
		at = e.offset(rules.Content[n-1])
	}
	items := []string{", " + flowItem(e.rule), " " + flowItem(e.rule)} // the second after a comma
	if len(rules.Content) == 0 {
		items = []string{flowItem(e.rule)}
	}
	var tries []splices
	for len(tries) < 4*maxTries {
		i := bytes.IndexByte(e.src[at:], ']')
		if i < 0 {
			break
		}
		at += i + 1
		for _, item := range items {
			tries = append(tries, e.beforeBracket(at-1, item)...)
		}
	}
	return tries
}

// beforeBracket inserts an item behind what stands before the bracket at an
// offset, with the comment behind the bracket if nothing else is there.
func (e *editor) beforeBracket(bracket int, item string) []splices {
	insert := splice{len(bytes.TrimRight(e.src[:bracket], " \t\r\n")), item}
	rest, _, _ := bytes.Cut(e.src[bracket+1:], []byte("\n"))
	if e.comment == "" || len(bytes.TrimSpace(rest)) > 0 {
		return []splices{{insert}}
	}
	return []splices{{insert, {bracket + 1, e.comment}}, {insert}}
}

// intoFlowMapping adds an entry behind the brace that begins a mapping.
func (e *editor) intoFlowMapping(m *yaml.Node, text string) []splices {
	at := e.offset(m)
	i := bytes.IndexByte(e.src[at:], '{')
	if i < 0 {
		return nil
	}
	if len(m.Content) > 0 {
		text += ", "
	}
	return []splices{{{at + i + 1, text}}}
}

// atEnd adds lines after the last one.
func (e *editor) atEnd(text string) []splices {
	return []splices{{e.afterLine(len(e.starts)-1, text)}}
}

// afterLine inserts whole lines below a line, which may lack its end.
func (e *editor) afterLine(line int, text string) splice {
	at := e.starts[line]
	if at > 0 && e.src[at-1] != '\n' {
		text = e.newline + text
	}
	return splice{at, text}
}

// line returns a line, from 1, without its end; outside of the file it is
// empty.
func (e *editor) line(n int) string {
	if n < 1 || n >= len(e.starts) {
		return ""
	}
	return strings.TrimRight(string(e.src[e.starts[n-1]:e.starts[n]]), "\r\n")
}

// offset returns where in the source a node begins.
func (e *editor) offset(n *yaml.Node) int {
	if n.Line >= len(e.starts) {
		return len(e.src)
	}
	at := e.starts[n.Line-1]
	rest := []rune(string(e.src[at:]))
	return at + len(string(rest[:min(n.Column-1, len(rest))]))
}

// blockItem returns the rule as an item in block style, with its comment.
func (e *editor) blockItem(indent, newline string) string {
	key, value := hostKey(e.rule)
	return fmt.Sprintf("%s- %s: %s%s%s  port: %s%s%s", indent, key, value, newline, indent, e.rule.Ports[0], e.comment, newline)
}

// flowItem returns the rule in flow style.
func flowItem(r Rule) string {
	key, value := hostKey(r)
	return fmt.Sprintf("{%s: %s, port: %s}", key, value, r.Ports[0])
}

// flowList returns the list in flow style: rules with the built-in ones.
func (e *editor) flowList() string {
	var items []string
	if e.list == listRules {
		for _, r := range defaultRules() {
			items = append(items, flowItem(r))
		}
	}
	return e.list + ": [" + strings.Join(append(items, flowItem(e.rule)), ", ") + "]"
}

// blockList does so in block style.
func (e *editor) blockList(indent string) string {
	list := indent + e.list + ":" + e.newline
	if e.list == listRules {
		list = rulesText(indent, e.newline)
	}
	return list + e.blockItem(indent+"  ", e.newline)
}

// hostKey returns what the rule is for as a key and a value of YAML, quoted
// where a plain value could be read as something else: a wildcard is an alias,
// "null" a null, an IPv6 address a mapping.
func hostKey(r Rule) (key, value string) {
	key, value = "host", r.Host
	if r.CIDR.IsValid() {
		key, value = "cidr", r.CIDR.String()
	}
	if !strings.Contains(value, ".") || strings.ContainsAny(value, "*:") || value[0] < 'a' || value[0] > 'z' {
		value = `"` + value + `"`
	}
	return key, value
}
