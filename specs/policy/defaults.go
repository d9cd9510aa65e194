package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Granted is a path or a host that a built-in list grants, and why.
type Granted struct {
	Name string
	Why  string
}

// EssentialReadOnly and EssentialReadWrite are granted by every policy:
// without them shells, libc and language runtimes do not start. The kernel's
// own checks of these files stay in force.
var (
	EssentialReadOnly = []Granted{
		{"/proc", "a program's view of itself: /proc/self, open descriptors, libc's sysconf"},
		{"/dev/random", "randomness, as read by older TLS libraries"},
		{"/dev/urandom", "randomness"},
	}
	EssentialReadWrite = []Granted{
		{"/dev/null", "every shell redirects to it"},
		{"/dev/zero", "memory for some allocators"},
		{"/dev/full", "part of the devices that the OCI specification promises"},
		{"/dev/tty", "a program's terminal by name: passwords, pagers, git"},
		{"/dev/pts", "terminals of docker run -t, tmux, script"},
		{"/dev/ptmx", "opens a new terminal"},
		{"/dev/shm", "POSIX shared memory: Python multiprocessing, browsers, databases"},
	}
)

// DefaultReadOnly is filesystem.read_only where the key is absent. Directories
// that an image lacks are skipped.
var DefaultReadOnly = []Granted{
	{"/usr", "programs and libraries"},
	{"/bin", "programs, where it is not a link into /usr (Alpine)"},
	{"/sbin", "the same"},
	{"/lib", "libraries and the dynamic linker, where it is not a link into /usr (Alpine)"},
	{"/lib32", "the same for 32-bit programs"},
	{"/lib64", "the dynamic linker's path on amd64"},
	{"/libx32", "the same for x32"},
	{"/opt", "software outside of the distribution: JVMs, Conda"},
	{"/srv", "an application's own place in many images"},
	{"/app", "the same"},
	{"/nix", "the store of Nix images"},
	{"/etc", "resolv.conf, passwd, CA certificates"},
	{"/var/lib/dpkg", "which packages are installed (Debian), asked by tools"},
	{"/var/lib/rpm", "the same (Fedora)"},
	{"/var/log", "reading logs of the image; nothing is written there"},
	{"/sys/fs/cgroup", "limits of memory and CPU, read by the JVM, Go and Node"},
	{"/sys/devices/system/cpu", "how many processors there are"},
	{"/sys/kernel/mm/transparent_hugepage", "read by the JVM and by Go at start"},
}

// DefaultReadWrite is filesystem.read_write where the key is absent.
var DefaultReadWrite = []Granted{
	{"/sandbox", "the agent's home and work"},
	{"/tmp", "temporary files"},
	{"/var/tmp", "temporary files that are large or long-lived"},
	{"/dev/mqueue", "POSIX message queues"},
	{"/dev/console", "the terminal of docker run -t under its other name"},
}

// DefaultEgress are the hosts that egress.rules opens, on port 443, where the
// key is absent.
var DefaultEgress = []Granted{
	{"api.anthropic.com", "inference: the Claude API"},
	{"integrate.api.nvidia.com", "inference: NVIDIA's hosted models"},
	{"github.com", "git over HTTPS, releases"},
	{"api.github.com", "pull requests, reviews, the gh program"},
	{"clawhub.com", "the agent's skills"},
	{"openclaw.ai", "the agent's own updates and documents"},
	{"api.telegram.org", "messages to the person whom the agent works for"},
}

// defaultPort is the port of every host of DefaultEgress.
const defaultPort = 443

// Default returns the policy that is in force where nobody wrote one.
func Default() *Policy {
	p := defaults()
	p.finish(DefaultSource())
	return p
}

// Unconfined returns the policy that switches every layer off. It is for
// conformance tests and has no form in a file.
func Unconfined() *Policy {
	p := &Policy{Unconfined: true, Network: Network{Uplink: UplinkAuto, Ingress: IngressAll}}
	p.finish(nil)
	return p
}

// defaults returns a policy that is complete but for finish.
func defaults() *Policy {
	return &Policy{
		Filesystem: Filesystem{
			ReadOnly:       optional(DefaultReadOnly),
			ReadWrite:      optional(DefaultReadWrite),
			WriteExecute:   true,
			IncludeWorkdir: true,
			Image:          ImageAuto,
			Volumes:        VolumesFollow,
		},
		Network: Network{Uplink: UplinkAuto, Ingress: IngressAll},
		Egress:  Egress{Rules: defaultRules()},
	}
}

// finish adds what is essential, and derives what the policy is asked by.
func (p *Policy) finish(src []byte) {
	if !p.Unconfined {
		p.Filesystem.addEssential()
	}
	sum := sha256.Sum256(src)
	p.Digest = hex.EncodeToString(sum[:])
	p.match = newMatcher(&p.Egress)
}

// addEssential adds the essential paths that the lists lack. A path that may
// be written need not be read-only as well.
func (f *Filesystem) addEssential() {
	for _, path := range optional(EssentialReadWrite) {
		if !has(f.ReadWrite, path.Name) {
			f.ReadWrite = append(f.ReadWrite, path)
		}
	}
	for _, path := range optional(EssentialReadOnly) {
		if !has(f.ReadOnly, path.Name) {
			f.ReadOnly = append(f.ReadOnly, path)
		}
	}
	f.ReadOnly = slices.DeleteFunc(f.ReadOnly, func(p Path) bool { return has(f.ReadWrite, p.Name) })
	hidden := func(p Path) bool {
		return p.Line == 0 && slices.ContainsFunc(f.Deny, func(d Path) bool { return d.holds(p.Name) })
	}
	f.ReadOnly, f.ReadWrite = slices.DeleteFunc(f.ReadOnly, hidden), slices.DeleteFunc(f.ReadWrite, hidden)
}

// holds reports whether name is p or lies below it.
func (p Path) holds(name string) bool {
	return p.Name == "/" || name == p.Name || strings.HasPrefix(name, p.Name+"/")
}

func has(paths []Path, name string) bool {
	return slices.ContainsFunc(paths, func(p Path) bool { return p.Name == name })
}

func optional(list []Granted) []Path {
	paths := make([]Path, len(list))
	for i, g := range list {
		paths[i] = Path{Name: g.Name, Optional: true}
	}
	return paths
}

func defaultRules() []Rule {
	rules := make([]Rule, len(DefaultEgress))
	for i, g := range DefaultEgress {
		rules[i] = Rule{Host: g.Name, Ports: []PortRange{{defaultPort, defaultPort}}}
	}
	return rules
}

// DefaultSource returns the text of a policy file that means what Default
// means, for an operator to start from.
func DefaultSource() []byte {
	var b strings.Builder
	b.WriteString(defaultHead)
	writeCommented(&b, "read_only", DefaultReadOnly)
	writeCommented(&b, "read_write", DefaultReadWrite)
	b.WriteString(defaultMiddle)
	b.WriteString(rulesText("  ", "\n"))
	b.WriteString(defaultTail)
	return []byte(b.String())
}

// rulesText returns the default egress.rules in block style.
func rulesText(indent, newline string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%srules:%s", indent, newline)
	for _, g := range DefaultEgress {
		fmt.Fprintf(&b, "%s  - host: %s%s", indent, g.Name, newline)
		fmt.Fprintf(&b, "%s    port: %d  # %s%s", indent, defaultPort, g.Why, newline)
	}
	return b.String()
}

// writeCommented writes a list of paths as a comment: written out it would be
// required of the image, since what a person lists must exist.
func writeCommented(b *strings.Builder, key string, list []Granted) {
	fmt.Fprintf(b, "#   %s:\n", key)
	for _, g := range list {
		fmt.Fprintf(b, "#     - %-36s # %s\n", g.Name, g.Why)
	}
}

const defaultHead = `# A nemoclaw policy: what the programs of one sandbox may do.
# A key that is absent has its default; a key that is present replaces it.
version: 1

# Layer 1, files. The defaults, of which a path that the image lacks is skipped:
# filesystem:
`

const defaultMiddle = `#   deny: []                # hidden, also inside of the others
#   write_execute: allow    # programs may be run where they may be written; or deny
#   include_workdir: true   # the working directory may be written
#   image: auto             # other top-level directories of the image may be read; or strict
#   volumes: follow         # volumes as they are mounted; or policy_only
# landlock: {compatibility: hard_requirement}

# Layers 2 and 3, system calls and the network. The defaults:
# seccomp: {deny: [], allow: []}
# network: {uplink: auto, ingress: all, dns: []}

# Layer 4: who may be talked to. Everything else is refused, and recorded.
# This part takes effect as soon as the file is saved.
egress:
`

const defaultTail = `    # A package registry. It would be for reading only, but methods cannot be
    # restricted yet: the rule lets an agent publish as well, if it has a token.
    # - host: registry.npm.example
    #   port: 443  # GET only, once "methods: [GET, HEAD]" is supported
  deny: []  # beats every rule and every approval; "- host: ..." or "- cidr: ..."
`
