package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/specs"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
	"nemoclaw/specs/seccomp"
)

// told is what check tells: nothing of it depends on the time of day or on
// where it runs but what the rules of expiry say.
type told struct {
	Policy   string     `json:"policy"`
	Digest   string     `json:"digest"` // sha256 of the policy's bytes
	Bundle   string     `json:"bundle,omitempty"`
	Warnings []string   `json:"warnings,omitempty"` // "policy.yaml:3:7: why"
	Refused  []refusal  `json:"refused,omitempty"`
	Filter   string     `json:"second_filter,omitempty"` // sha256 of it, as status shows it; with a bundle
	Layers   []*section `json:"layers"`
}

// refusal is one reason why create would refuse.
type refusal struct {
	Why  string `json:"why"`
	Hint string `json:"hint,omitempty"`
}

// section is one layer.
type section struct {
	Name  string `json:"layer"`
	About string `json:"about"`
	Lines []line `json:"lines,omitempty"`
}

// line is one thing that is granted, hidden, denied, changed or made, and where
// that comes from.
type line struct {
	Verb string `json:"verb"`
	What string `json:"what"`
	Why  string `json:"why,omitempty"`
}

func (s *section) add(verb, what, why string) { s.Lines = append(s.Lines, line{verb, what, why}) }

func (t *told) section(name, format string, args ...any) *section {
	s := &section{Name: name, About: fmt.Sprintf(format, args...)}
	t.Layers = append(t.Layers, s)
	return s
}

// print is for people; its first line is for scripts as well.
func (t *told) print(w io.Writer) {
	fmt.Fprintf(w, "%s is a valid policy\n", t.Policy)
	fmt.Fprintf(w, "  sha256 %.12s\n", t.Digest)
	for _, f := range t.Warnings {
		fmt.Fprintf(w, "  warning: %s\n", f)
	}
	if t.Bundle != "" {
		verdict := "would run under it"
		if len(t.Refused) > 0 {
			verdict = "would be refused"
		}
		fmt.Fprintf(w, "the bundle %s %s\n", t.Bundle, verdict)
	}
	for _, s := range t.Layers {
		fmt.Fprintf(w, "%s: %s\n", s.Name, s.About)
		for _, l := range s.Lines {
			fmt.Fprintf(w, "  %-6s %s", l.Verb, l.What)
			if l.Why != "" {
				fmt.Fprintf(w, " (%s)", l.Why)
			}
			fmt.Fprintln(w)
		}
	}
}

// refuse keeps every reason of a refusal.
func (t *told) refuse(err error) {
	reasons := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		reasons = joined.Unwrap()
	}
	for _, e := range reasons {
		r := refusal{Why: e.Error()}
		if ref, ok := errors.AsType[*specs.Refusal](e); ok {
			r.Hint = ref.Hint
		}
		t.Refused = append(t.Refused, r)
	}
}

// place is where a line of a policy stands; empty for built-in ones.
func place(p *policy.Policy, at int) string {
	if at == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d", path.Base(p.File), at)
}

func (t *told) filesystem(p *policy.Policy) *section {
	needs := fmt.Sprintf("Landlock ABI %d or later", landlock.MinABI)
	if p.Landlock.BestEffort {
		needs = "Landlock as far as the kernel has it"
	}
	about := fmt.Sprintf("%s, image %s, volumes %s", needs, p.Filesystem.Image, p.Filesystem.Volumes)
	if !p.Filesystem.WriteExecute {
		about += ", nothing writable is executable"
	}
	s := t.section("filesystem", "%s", about)
	for _, v := range p.Filesystem.AllowVolumes {
		s.add("allow", "volume "+v, "allow_volumes")
	}
	for _, d := range p.Filesystem.AllowDevices {
		s.add("allow", "device "+d, "allow_devices")
	}
	return s
}

// count is n things.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// builtIn tells how many rules are of the built-in lists, if any are.
func (s *section) builtIn(n int) {
	if n > 0 {
		s.add("grant", count(n, "path")+" of the built-in lists, where the image has them", "")
	}
}

// grants tells the rules; those of the built-in lists are counted.
func (s *section) grants(spec *oci.Spec, rules []landlock.Rule, links []string, host specs.Host) {
	builtIn := 0
	for _, r := range rules {
		switch {
		case r.Why == "built-in":
			builtIn++
		case slices.Contains(links, r.Path):
			s.add("warn", r.Path+" is a symbolic link in the image and grants nothing; name what it leads to", r.Why)
		default:
			s.add("grant", fmt.Sprintf("%s %v", r.Path, r.Access), r.Why)
		}
	}
	s.builtIn(builtIn)
	for _, r := range rules {
		if r.Make && host.Missing[r.Path] && !mounted(spec, r.Path) {
			s.add("make", r.Path, "the image has none")
		}
	}
}

func (s *section) carves(list []specs.Carve) {
	for _, c := range list {
		verb := "mount"
		switch {
		case c.Deny:
			verb = "hide"
		case !c.Listed:
			verb = "pin"
		}
		what := strings.TrimSuffix(c.String(), " ("+c.Why+")")
		if verb != "mount" {
			what = c.Path
		}
		s.add(verb, what, c.Why)
	}
}

// calls tells the second filter; denials are nil where they depend on a bundle.
func (t *told) calls(p *policy.Policy, denials []seccomp.Denial) *section {
	s := t.section("system calls", "a second filter, above the engine's")
	if denials != nil {
		if filter, err := seccomp.Compile(denials); err == nil {
			t.Filter = digest(filter)
		}
	}
	names := func(list []policy.Syscall) (names []string) {
		for _, c := range list {
			names = append(names, c.Name)
		}
		return names
	}
	left, err := seccomp.Denials(nil, names(p.Seccomp.Allow), nil)
	if err != nil {
		return s // Parse has seen to it
	}
	for _, g := range seccomp.Groups {
		if n := callsOf(g, left); n > 0 {
			s.add("deny", fmt.Sprintf("group:%s, %s", g.Name, count(n, "call")), "built-in")
		}
	}
	if !p.Filesystem.WriteExecute {
		s.add("deny", fmt.Sprintf("group:%s, %s", seccomp.WriteExecute.Name, count(callsOf(seccomp.WriteExecute, seccomp.WriteExecute.Denials), "call")), "write_execute")
	}
	for _, c := range p.Seccomp.Deny {
		s.add("deny", c.Name, place(p, c.Line))
	}
	for _, c := range p.Seccomp.Allow {
		s.add("allow", c.Name, place(p, c.Line))
	}
	return s
}

// callsOf counts the calls of a group that denials still name.
func callsOf(g seccomp.Group, denials []seccomp.Denial) int {
	seen := map[string]bool{}
	for _, d := range g.Denials {
		if slices.ContainsFunc(denials, func(o seccomp.Denial) bool { return o.Call == d.Call }) {
			seen[d.Call] = true
		}
	}
	return len(seen)
}

// digest is that of the filter as it is stored and as status shows it.
func digest(filter []unix.SockFilter) string {
	var b []byte
	for _, i := range filter {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

func (t *told) process(p *policy.Policy) *section {
	var most []string
	for _, name := range specs.MayHold(p.Capabilities) {
		most = append(most, strings.TrimPrefix(name, "CAP_"))
	}
	if len(most) == 0 {
		return t.section("process", "no_new_privs, no capabilities")
	}
	return t.section("process", "no_new_privs, at most the capabilities %s", strings.Join(most, " "))
}

func (t *told) network(p *policy.Policy) *section {
	s := t.section("network", "uplink %s, ingress %s", p.Network.Uplink, p.Network.Ingress)
	for _, a := range p.Network.DNS {
		s.add("ask", "the name server "+a.String(), "network.dns")
	}
	if p.Network.Proxy != "" {
		s.add("go by", "the proxy "+p.Network.Proxy+", which resolves names: their addresses are not checked", "network.proxy")
	}
	return s
}

func (t *told) egress(p *policy.Policy) {
	s := t.section("egress", "%s, %s", count(len(p.Egress.Rules), "rule"), count(len(p.Egress.Deny), "deny rule"))
	if p.Egress.Audit {
		s.About += "; what no rule allows passes, and is recorded (enforce: audit)"
	}
	if hold := p.Egress.Defaults.Hold; hold > 0 {
		s.About += fmt.Sprintf("; what no rule allows waits %s for the operator", hold)
	}
	for _, list := range []struct {
		verb  string
		rules []policy.Rule
	}{{"allow", p.Egress.Rules}, {"deny", p.Egress.Deny}} {
		for _, r := range list.rules {
			why := p.Where(&r)
			if o := r.Options(); o != "" {
				why += "; " + o
			}
			s.add(list.verb, r.String(), why)
		}
	}
}

// sectionOf returns the section that an edit, "layer: what", belongs to.
func sectionOf(does string, files, calls, process, network *section) *section {
	switch layer, _, _ := strings.Cut(does, ":"); layer {
	case "mounts", "filesystem":
		return files
	case "seccomp":
		return calls
	case "network":
		return network
	}
	return process
}

// edit tells what is done to the spec.
func (s *section) edit(does string) {
	_, what, _ := strings.Cut(does, ": ")
	s.add("change", what, "")
}

// lookFor returns, of the paths that a person wrote, those that are links in the
// image and grant nothing, and an error for those that the image lacks, for which
// create refuses. What a mount of the spec brings, or a root that is not there
// yet, is not known.
func lookFor(spec *oci.Spec, rules []landlock.Rule) (links []string, absent error) {
	if spec.Root == nil {
		return nil, nil
	}
	root, err := unix.Open(spec.Root.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil
	}
	defer unix.Close(root)
	var faults []error
	for _, r := range rules {
		if r.Optional || r.Implied || r.Mount || r.Make || mounted(spec, r.Path) {
			continue
		}
		fd, err := unix.Openat2(root, r.Path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
		switch {
		case err == nil:
			unix.Close(fd)
		case errors.Is(err, unix.ELOOP):
			links = append(links, r.Path)
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			why := &specs.Refusal{Why: fmt.Sprintf("filesystem: %s (%s): the image has no such file or directory there", r.Path, r.Why)}
			if len(faults) == 0 {
				why.Hint = "create it in the image, or take it out of the policy"
			}
			faults = append(faults, why)
		}
	}
	return links, errors.Join(faults...)
}

// mounted reports whether name is what a mount of the spec brings, or lies below.
func mounted(spec *oci.Spec, name string) bool {
	return slices.ContainsFunc(spec.Mounts, func(m oci.Mount) bool {
		at := path.Clean(m.Destination)
		return name == at || strings.HasPrefix(name, strings.TrimSuffix(at, "/")+"/")
	})
}
