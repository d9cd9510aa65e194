package seccomp

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite DENIALS.md from the data")

// DENIALS.md is what the filter denies: made from the data that makes the
// filter, so that neither can say what the other does not.
func TestDocument(t *testing.T) {
	const file = "DENIALS.md"
	got := document(t)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what the data say (make golden rewrites it)", file)
	}
}

const documentHead = `# System calls that are denied

Made by TestDocument from denials.go (make golden); the filter is compiled from the same lines.

Two filters stand one behind the other, and the kernel takes the stricter answer. The first is the engine's profile, compiled by
libcontainer, or Docker's default where the engine gives none, compiled by us; for the native architecture alone. The second is this one, whatever the first says: it allows what is not
named here. A policy takes out single calls or whole groups, and adds single calls:

    seccomp:
      allow: [ptrace, group:keyrings]
      deny: [memfd_create]

A call that is named in deny stays denied, whatever group is allowed. What a policy allows is written into the audit log, and the first
filter still has its say.

## Before the groups

| call | answer | reason |
|---|---|---|
| of another architecture: 32-bit (int 0x80), x32 | EPERM; under an engine's profile SIGSYS by the first filter, which ends the thread | their numbers and arguments mean something else: on x86 socketcall(2) has its arguments behind a pointer, where no filter looks |
| newer than %s, or in a gap of the table | ENOSYS | nobody has looked at them; programs take it as "this kernel is older" |

Arguments are compared by their lower 32 bits, which is all that the kernel reads of the ones below: bits above cannot be used to slip past.
`

// document is the text of DENIALS.md. Calls that amd64 alone has are named all
// the same: the text is one for every architecture.
func document(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, documentHead, reviewed)
	for _, g := range Groups {
		fmt.Fprintf(&b, "\n## group:%s\n\nWhy: %s.\n\nSource: %s.\n", g.Name, g.Why, g.Source)
		if g.Why == "" || g.Source == "" {
			t.Errorf("group %s gives no reason or no source", g.Name)
		}
		table(t, &b, g.Denials)
	}
	fmt.Fprintf(&b, "\n## With filesystem.write_execute: deny\n\nWhy: %s.\n\nSource: %s. seccomp.allow does not take it out.\n", WriteExecute.Why, WriteExecute.Source)
	table(t, &b, WriteExecute.Denials)
	fmt.Fprintf(&b, "\n## In a sandbox that shares a pid namespace\n\nAs with docker run --pid; seccomp.allow does not take it out.\n")
	table(t, &b, []Denial{OthersLimits})
	return b.String()
}

// table writes denials, those without conditions and words of their own in one
// row for each answer.
func table(t *testing.T, b *strings.Builder, denials []Denial) {
	t.Helper()
	fmt.Fprintf(b, "\n| call | when | answer | reason of its own | source of its own |\n|---|---|---|---|---|\n")
	plain := map[unix.Errno][]string{}
	for _, d := range denials {
		if len(d.If) == 0 && d.Why == "" && d.Source == "" {
			plain[d.Errno] = append(plain[d.Errno], d.Call)
		}
	}
	for _, e := range slices.Sorted(maps.Keys(plain)) {
		fmt.Fprintf(b, "| %s | always | %s | | |\n", strings.Join(plain[e], ", "), unix.ErrnoName(e))
	}
	for _, d := range denials {
		if len(d.If) == 0 && d.Why == "" && d.Source == "" {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", d.Call, condition(t, d), unix.ErrnoName(d.Errno), d.Why, d.Source)
	}
}

// arguments names those arguments that are looked at, and their values.
var arguments = map[string]map[int]struct {
	name   string
	values map[uint32]string
}{
	"clone":       {0: {"flags", nil}},
	"execveat":    {4: {"flags", map[uint32]string{unix.AT_EMPTY_PATH: "AT_EMPTY_PATH"}}},
	"ioctl":       {1: {"request", map[uint32]string{unix.TIOCSTI: "TIOCSTI", unix.TIOCLINUX: "TIOCLINUX", unix.TIOCSETD: "TIOCSETD"}}},
	"personality": {0: {"persona", map[uint32]string{0: "PER_LINUX", 0x8: "PER_LINUX32", 0x20000: "UNAME26", 0x20008: "both of these", 0xffffffff: "-1 (a question)"}}},
	"prlimit64":   {0: {"pid", map[uint32]string{0: "0 (the caller)"}}},
	"socketpair":  {0: {"family", families}},
	"socket": {0: {"family", families},
		1: {"type", map[uint32]string{unix.SOCK_STREAM: "STREAM", unix.SOCK_DGRAM: "DGRAM", unix.SOCK_RAW: "RAW", unix.SOCK_RDM: "RDM", unix.SOCK_PACKET: "PACKET"}},
		2: {"protocol", map[uint32]string{0: "0", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMPV6: "ICMPV6"}}},
}

var families = map[uint32]string{unix.AF_UNIX: "UNIX", unix.AF_INET: "INET", unix.AF_INET6: "INET6", unix.AF_NETLINK: "NETLINK"}

// condition is d.If in words. A value without a name is a fault: nobody could
// read it.
func condition(t *testing.T, d Denial) string {
	t.Helper()
	if len(d.If) == 0 {
		return "always"
	}
	var all []string
	for _, c := range d.If {
		arg, ok := arguments[d.Call][c.Arg]
		if !ok {
			t.Errorf("argument %d of %s has no name in the document", c.Arg, d.Call)
		}
		if d.Call == "clone" && c.Mask == cloneNew && !c.In {
			all = append(all, "flags hold any CLONE_NEW*")
			continue
		}
		var values []string
		for _, v := range c.Values {
			if arg.values[v] == "" {
				t.Errorf("%s: %#x has no name in the document", d.Call, v)
			}
			values = append(values, arg.values[v])
		}
		is := "is"
		switch {
		case !c.In && len(values) > 1:
			is = "is none of"
		case !c.In:
			is = "is not"
		case arg.name == "flags":
			is = "hold"
		case len(values) > 1:
			is = "is one of"
		}
		all = append(all, fmt.Sprintf("%s %s %s", arg.name, is, strings.Join(values, ", ")))
	}
	return strings.Join(all, "; and ")
}
