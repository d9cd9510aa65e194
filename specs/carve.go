package specs

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// Carve is a mount that makes less of a place than the rules make of the tree
// around it, which Landlock cannot: a rule adds rights and takes none away.
//
// What is read-only or hidden for its name alone could be moved away with a
// directory above it, and another be put under the name. Each directory between
// the rule and the place is therefore a mount as well, a pin: what is a mount
// point can be neither renamed nor removed (rename(2), EBUSY). The price is that
// nothing is renamed or linked across a pin (EXDEV), and that rm -r leaves it.
type Carve struct {
	Path     string
	ReadOnly bool // a mount of the place on itself that may not be written
	Deny     bool // an empty directory, or a file without content, in its place
	NoExec   bool // a mount of the place on itself from which nothing is executed
	Listed   bool // false: a pin
	// Within is the writable directory that holds it; empty: there is none, so
	// that the program cannot make it where it is missing.
	Within string
	Make   bool   // where it is missing a directory is made: its name ended in "/"
	Why    string // "policy.yaml:4"
}

// String prints the carve as check and errors show it.
func (c Carve) String() string {
	var is []string
	for word, on := range map[string]bool{"hidden": c.Deny, "read-only": c.ReadOnly, "not executable": c.NoExec} {
		if on {
			is = append(is, word)
		}
	}
	if len(is) == 0 {
		return c.Path + " pinned"
	}
	slices.Sort(is)
	return fmt.Sprintf("%s %s (%s)", c.Path, strings.Join(is, ", "), c.Why)
}

// Carves returns what must be mounted so that the policy's lists hold inside of
// what rules grant, in the order in which it is to be done: what holds another
// comes first.
func Carves(p *policy.Policy, rules []landlock.Rule) []Carve {
	places := map[string]Carve{}
	add := func(f policy.Path, change func(*Carve)) {
		c := places[f.Name]
		c.Path, c.Listed, c.Make, c.Within = f.Name, true, c.Make || f.Dir, WritableAbove(f.Name, rules)
		if c.Why = "write_execute"; f.Line > 0 {
			c.Why = fmt.Sprintf("%s:%d", filepath.Base(p.File), f.Line)
		}
		change(&c)
		places[f.Name] = c
	}
	if !p.Filesystem.WriteExecute {
		for _, r := range rules {
			if isWritable(r) {
				add(policy.Path{Name: r.Path}, func(c *Carve) { c.NoExec = true })
			}
		}
	}
	for _, f := range slices.Concat(p.Filesystem.ReadOnly, p.Filesystem.ReadWrite) {
		if f.NoExec {
			add(f, func(c *Carve) { c.NoExec = true })
		}
	}
	for _, f := range p.Filesystem.ReadOnly {
		if f.Line > 0 && WritableAbove(f.Name, rules) != "" {
			add(f, func(c *Carve) { c.ReadOnly = true })
		}
	}
	for _, f := range p.Filesystem.Deny {
		add(f, func(c *Carve) { c.Deny = true })
	}
	for _, c := range places {
		for dir := path.Dir(c.Path); c.Within != "" && dir != c.Within; dir = path.Dir(dir) {
			if pin := places[dir]; !pin.Listed {
				places[dir] = Carve{Path: dir, Within: c.Within, Make: c.Make || pin.Make}
			}
		}
	}
	var carves []Carve
	for _, c := range places {
		carves = append(carves, c)
	}
	slices.SortFunc(carves, func(a, b Carve) int { return strings.Compare(a.Path, b.Path) })
	return carves
}

// WritableAbove returns the uppermost directory above name that rules let a program
// write, or "".
func WritableAbove(name string, rules []landlock.Rule) string {
	found := ""
	for _, r := range rules {
		if r.Access&landlock.MakeReg != 0 && r.Path != name && within(name, r.Path) && (found == "" || within(found, r.Path)) {
			found = r.Path
		}
	}
	return found
}

// Uncarvable returns why c, one of all, would not hold, or "". volumes are those
// that can be seen, where they really are.
func Uncarvable(c Carve, all []Carve, p *policy.Policy, spec *oci.Spec, volumes []Volume) string {
	for _, f := range p.Filesystem.ReadWrite {
		if f.Line > 0 && c.ReadOnly && within(f.Name, c.Path) {
			return f.Name + " is to be written, and lies in it"
		}
	}
	if by := spread(c.Path, spec); by != "" {
		return by + " is shared with the host, where the mount that it takes would appear as well"
	}
	if other := sameFiles(c, all, volumes); other != nil {
		return fmt.Sprintf("the volume %s shows the same files at %s", other.Source, other.Destination)
	}
	return ""
}

// spread returns the mount around name that passes what is mounted in it on to
// the host (mount_namespaces(7), shared), or "".
func spread(name string, spec *oci.Spec) string {
	shared := func(word string) bool { return word == "shared" || word == "rshared" }
	around := "/"
	if shared(spec.Linux.RootfsPropagation) {
		return around
	}
	by := ""
	for _, m := range spec.Mounts {
		if at := path.Clean(m.Destination); within(name, at) && within(at, around) {
			around, by = at, ""
			if slices.ContainsFunc(m.Options, shared) {
				by = at
			}
		}
	}
	return by
}

// sameFiles returns a volume that shows what c takes away under another name, or
// nil. Files of the host that are no volume's are out of reach.
func sameFiles(c Carve, all []Carve, volumes []Volume) *Volume {
	if !c.ReadOnly && !c.Deny && !c.NoExec {
		return nil
	}
	var holder *Volume
	for i, v := range volumes {
		if within(c.Path, v.Destination) && (holder == nil || within(v.Destination, holder.Destination)) {
			holder = &volumes[i]
		}
	}
	if holder == nil {
		return nil
	}
	source := path.Join(holder.Resolved, strings.TrimPrefix(c.Path, holder.Destination))
	for i, v := range volumes {
		seen := within(source, v.Resolved) || within(v.Resolved, source)
		if seen && v.Destination != holder.Destination && !within(v.Destination, c.Path) && gives(v, c, all) {
			return &volumes[i]
		}
	}
	return nil
}

// gives reports whether v gives a program what c takes from it.
func gives(v Volume, c Carve, all []Carve) bool {
	switch {
	case c.Deny, c.ReadOnly && !v.ReadOnly:
		return true
	case !c.NoExec:
		return false
	}
	return !slices.ContainsFunc(all, func(o Carve) bool { return (o.NoExec || o.Deny) && within(v.Destination, o.Path) })
}
