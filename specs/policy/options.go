package policy

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Bounds of what a rule's options may say.
const (
	// MaxHold is the longest that a connection may be kept for the operator.
	MaxHold = 5 * time.Minute
	// defaultHold is how long "on_unlisted: hold" keeps one if hold is absent.
	defaultHold = 30 * time.Second

	maxBinaries    = 64                   // patterns of one rule
	maxBytes       = 1 << 50              // 1 PiB
	maxConnections = 1024                 // what the gateway carries in all
	maxRate        = 1_000_000            // connections in a unit of time
	maxTime        = 366 * 24 * time.Hour // of ttl and idle_timeout
)

// Owner is who opens a connection, for rules with binaries. The zero Owner is
// unknown, or not one process alone, and satisfies none of them.
type Owner struct {
	// Exe is the executable's absolute path as the container sees it, which
	// is what /proc/PID/exe reads (proc_pid_exe(5)).
	Exe string
}

// Rate is how many connections may begin in a time. The zero Rate is no bound.
type Rate struct {
	Count int
	Per   time.Duration // a second, a minute or an hour
}

// String returns "20/s", or "" for no bound.
func (r Rate) String() string {
	for unit, per := range rateUnits {
		if r.Count > 0 && r.Per == per {
			return fmt.Sprintf("%d/%s", r.Count, unit)
		}
	}
	return ""
}

var rateUnits = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}

// options are the fields of a rule that allows which say how far it goes.
func (p *parser) options(r *Rule) []field {
	return []field{
		{key: "allow_private", read: func(n *yaml.Node) { r.AllowPrivate = p.allowPrivate(n) }},
		{key: "raw", read: func(n *yaml.Node) { p.boolean(n, "raw", &r.Raw) }},
		{key: "binaries", read: func(n *yaml.Node) { r.Binaries = p.binaries(n) }},
		{key: "max_connections", read: func(n *yaml.Node) { r.MaxConnections = p.count(n, "max_connections", maxConnections) }},
		{key: "rate", read: func(n *yaml.Node) { r.Rate = p.rate(n) }},
		{key: "max_upload", read: func(n *yaml.Node) { r.MaxUpload = p.size(n, "max_upload") }},
		{key: "idle_timeout", read: func(n *yaml.Node) { r.IdleTimeout = p.span(n, "idle_timeout", maxTime) }},
		{key: "ttl", read: func(n *yaml.Node) { r.TTL = p.span(n, "ttl", maxTime) }},
		{key: "dns", read: func(n *yaml.Node) { r.DNS = p.recordTypes(n) }},
	}
}

// enforce reads whether what it stands in refuses, or is only tried out.
func (p *parser) enforce(n *yaml.Node, what string) (audit bool) {
	return p.choice(n, what, "deny", "audit") == "audit"
}

// binaries reads patterns of executables' paths.
func (p *parser) binaries(n *yaml.Node) []string {
	var patterns []string
	before := len(p.faults)
	p.list(n, "binaries", func(n *yaml.Node) {
		n, s, ok := p.text(n, "binaries")
		if !ok {
			return
		}
		_, bad := path.Match(s, "/")
		switch below := strings.TrimSuffix(s, "/**"); {
		case !strings.HasPrefix(s, "/"):
			p.fault(n, "binaries: %q must be the absolute path of an executable, such as /usr/bin/git", s)
		case bad != nil:
			p.fault(n, "binaries: %q is not a pattern: * and ? stand for what is within one part of a path, [a-z] for one character, /** at the end for everything below", s)
		case strings.Contains(below, "**"):
			p.fault(n, "binaries: %q: ** stands only at the end, as /**", s)
		case path.Clean(below) != below && below != "":
			p.fault(n, "binaries: write the path %q as %q", s, path.Clean(s))
		default:
			patterns = append(patterns, s)
		}
	})
	switch {
	case len(patterns) > maxBinaries:
		p.fault(n, "binaries has more than %d patterns", maxBinaries)
	case len(patterns) == 0 && len(p.faults) == before:
		p.fault(n, "binaries is empty, so no program could use the rule; name at least one, or take it out")
	}
	return patterns
}

// permits tells whether the rule is for the program that asks.
func (r *Rule) permits(by Owner) bool {
	return len(r.Binaries) == 0 || slices.ContainsFunc(r.Binaries, func(pattern string) bool { return runs(pattern, by.Exe) })
}

// runs tells whether a pattern matches an executable. One that was removed
// reads as "PATH (deleted)": what stands at its path now is another program.
func runs(pattern, exe string) bool {
	if !strings.HasPrefix(exe, "/") || strings.HasSuffix(exe, " (deleted)") {
		return false
	}
	if below, ok := strings.CutSuffix(pattern, "/**"); ok {
		for dir := path.Dir(exe); ; dir = path.Dir(dir) {
			if ok, _ := path.Match(below, strings.TrimSuffix(dir, "/")); ok {
				return true
			}
			if dir == "/" {
				return false
			}
		}
	}
	ok, _ := path.Match(pattern, exe) // its form was checked
	return ok
}

// count reads a number from 1 to most.
func (p *parser) count(n *yaml.Node, what string, most int) int {
	n, s, ok := p.text(n, what)
	if !ok {
		return 0
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < 1 || v > most || s != strconv.Itoa(v) {
		p.fault(n, "%s %q is not a number from 1 to %d", what, s, most)
		return 0
	}
	return v
}

// rate reads "20/s".
func (p *parser) rate(n *yaml.Node) Rate {
	n, s, ok := p.text(n, "rate")
	if !ok {
		return Rate{}
	}
	number, unit, _ := strings.Cut(s, "/")
	v, err := strconv.Atoi(number)
	per := rateUnits[unit]
	if err != nil || v < 1 || v > maxRate || per == 0 {
		p.fault(n, "rate %q is not a number of connections in a time, such as 20/s, 100/m or 1000/h", s)
		return Rate{}
	}
	return Rate{v, per}
}

// sizeUnits are what a number of bytes may end in.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1}}

// size reads a number of bytes, such as 50MiB.
func (p *parser) size(n *yaml.Node, what string) int64 {
	n, s, ok := p.text(n, what)
	if !ok {
		return 0
	}
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err == nil && v > 0 && v <= maxBytes/u.bytes {
			return v * u.bytes
		}
		break
	}
	p.fault(n, "%s %q is not a number of bytes, such as 50MiB (known: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)", what, s)
	return 0
}

// span reads a length of time from a second to most.
func (p *parser) span(n *yaml.Node, what string, most time.Duration) time.Duration {
	n, s, ok := p.text(n, what)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		p.fault(n, "%s %q is not a length of time, such as 30s, 10m or 2h", what, s)
	case d < time.Second || d > most:
		p.fault(n, "%s %q is not between 1s and %s", what, s, strings.TrimSuffix(strings.TrimSuffix(most.String(), "0s"), "0m"))
	default:
		return d
	}
	return 0
}

// recordTypes are those that the gateway can ask for beside addresses.
var recordTypes = []string{"TXT", "MX", "SRV"}

func (p *parser) recordTypes(n *yaml.Node) []string {
	var types []string
	p.list(n, "dns", func(n *yaml.Node) {
		if t := p.choice(n, "dns", recordTypes...); !slices.Contains(types, t) {
			types = append(types, t)
		}
	})
	return types
}

// defaults reads what holds where no rule says otherwise.
func (p *parser) defaults(n *yaml.Node, d *Defaults) {
	hold, before := false, len(p.faults)
	seen := p.mapping(n, "egress.defaults", []field{
		{key: "on_unlisted", read: func(n *yaml.Node) { hold = p.choice(n, "on_unlisted", "deny", "hold") == "hold" }},
		{key: "hold", read: func(n *yaml.Node) { d.Hold = p.span(n, "hold", MaxHold) }},
		{key: "max_connections", read: func(n *yaml.Node) { d.MaxConnections = p.count(n, "max_connections", maxConnections) }},
		{key: "max_upload", read: func(n *yaml.Node) { d.MaxUpload = p.size(n, "max_upload") }},
		{key: "idle_timeout", read: func(n *yaml.Node) { d.IdleTimeout = p.span(n, "idle_timeout", maxTime) }},
	})
	switch {
	case !hold && seen["hold"] != nil && len(p.faults) == before:
		p.fault(seen["hold"], "hold has no effect without \"on_unlisted: hold\"")
	case hold && seen["hold"] == nil:
		d.Hold = defaultHold
	}
}

// misplaced refuses a key that belongs below another.
func (p *parser) misplaced(below string, keys ...string) []field {
	fields := make([]field, len(keys))
	for i, key := range keys {
		fields[i] = field{key: key, hidden: true, read: func(n *yaml.Node) {
			p.fault(n, "egress: %s belongs below %s: write \"%s: {%s: ...}\"", key, below, below, key)
		}}
	}
	return fields
}
