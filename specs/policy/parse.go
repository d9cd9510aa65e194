package policy

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"nemoclaw/specs/seccomp"
)

// Parse reads a policy file. File is used in faults and by Where only; nothing
// is opened. What is wrong is returned as Faults, all at once, and then there
// is no policy.
func Parse(file string, src []byte) (*Policy, error) {
	return parse(file, src, false)
}

// ParseReload is Parse for a file whose policy is in force already: the file
// must say egress.rules itself. An editor that has saved half of it would
// otherwise bring the built-in rules back.
func ParseReload(file string, src []byte) (*Policy, error) {
	return parse(file, src, true)
}

func parse(file string, src []byte, reload bool) (*Policy, error) {
	p := newParser(file, src)
	pol := defaults()
	pol.File = file
	if doc := p.document(src); doc != nil {
		hasRules := p.policy(doc, pol)
		if reload && !hasRules {
			p.faultAt(1, 1, "egress.rules is missing; a running sandbox does not fall back to the built-in rules (to allow nothing write \"egress: {rules: []}\")")
		}
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	pol.finish(src)
	return pol, nil
}

// policy reads the whole document into pol, which holds the defaults. It tells
// whether egress.rules was there.
func (p *parser) policy(n *yaml.Node, pol *Policy) (hasRules bool) {
	p.mapping(n, "policy", append([]field{
		{key: "version", read: p.version},
		{key: "filesystem", read: func(n *yaml.Node) { p.filesystem(n, &pol.Filesystem) }},
		{key: "landlock", read: func(n *yaml.Node) { p.landlock(n, &pol.Landlock) }},
		{key: "seccomp", read: func(n *yaml.Node) { p.seccomp(n, &pol.Seccomp) }},
		{key: "capabilities", read: func(n *yaml.Node) { pol.Capabilities = p.capabilities(n) }},
		{key: "network", read: func(n *yaml.Node) { p.network(n, &pol.Network) }},
		{key: "egress", read: func(n *yaml.Node) { hasRules = p.egress(n, &pol.Egress) }},
	}, p.later("policy", "include")...))
	return hasRules
}

func (p *parser) version(n *yaml.Node) {
	if n, s, ok := p.text(n, "version"); ok && s != "1" {
		p.fault(n, "version %q is not known to this program (known: 1)", s)
	}
}

func (p *parser) filesystem(n *yaml.Node, f *Filesystem) {
	p.mapping(n, "filesystem", append([]field{
		{key: "read_only", read: func(n *yaml.Node) { f.ReadOnly = p.paths(n, "filesystem.read_only") }},
		{key: "read_write", read: func(n *yaml.Node) { f.ReadWrite = p.paths(n, "filesystem.read_write") }},
		{key: "deny", read: func(n *yaml.Node) { f.Deny = p.paths(n, "filesystem.deny") }},
		{key: "write_execute", read: func(n *yaml.Node) {
			f.WriteExecute = p.choice(n, "filesystem.write_execute", "allow", "deny") == "allow"
		}},
		{key: "include_workdir", read: func(n *yaml.Node) { p.boolean(n, "filesystem.include_workdir", &f.IncludeWorkdir) }},
		{key: "image", read: func(n *yaml.Node) {
			f.Image = ImageMode(p.choice(n, "filesystem.image", string(ImageAuto), string(ImageStrict)))
		}},
		{key: "volumes", read: func(n *yaml.Node) {
			f.Volumes = VolumeMode(p.choice(n, "filesystem.volumes", string(VolumesFollow), string(VolumesPolicyOnly)))
		}},
		{key: "allow_volumes", read: func(n *yaml.Node) { f.AllowVolumes = p.hostPaths(n, "filesystem.allow_volumes") }},
		{key: "allow_devices", read: func(n *yaml.Node) { f.AllowDevices = p.hostPaths(n, "filesystem.allow_devices") }},
	}, p.later("filesystem", "read_data")...))
	for _, ro := range f.ReadOnly {
		for _, rw := range f.ReadWrite {
			switch {
			case ro.Line == 0:
			case ro.Name == rw.Name && rw.Line > 0:
				p.faultAt(max(ro.Line, rw.Line), 1, "%s is in read_only (line %d) and in read_write (line %d); write it in one of them", ro.Name, ro.Line, rw.Line)
			case rw.Line > 0 && ro.holds(rw.Name):
				p.writableAgain(f, ro, rw)
			}
		}
	}
	for _, d := range f.Deny {
		for _, listed := range slices.Concat(f.ReadOnly, f.ReadWrite) {
			if listed.Line > 0 && d.holds(listed.Name) {
				p.faultAt(listed.Line, 1, "%s cannot be granted: it is or lies in %s, which line %d denies", listed.Name, d.Name, d.Line)
			}
		}
	}
}

// writableAgain refuses a writable place within a read-only one that lies in a
// writable one itself: the middle is a mount that may not be written, all of it.
func (p *parser) writableAgain(f *Filesystem, ro, rw Path) {
	for _, outer := range f.ReadWrite {
		if outer.Name != ro.Name && outer.holds(ro.Name) {
			p.faultAt(rw.Line, 1, "%s cannot be writable: it lies in %s, which is read-only (line %d) within %s; name the read-only places below %s one by one",
				rw.Name, ro.Name, ro.Line, outer.Name, ro.Name)
			return
		}
	}
}

// paths reads a list of paths, each alone or as {path: P, exec: false}.
func (p *parser) paths(n *yaml.Node, what string) []Path {
	paths := []Path{}
	p.list(n, what, func(n *yaml.Node) {
		entry := Path{Line: follow(n).Line}
		if follow(n).Kind != yaml.MappingNode {
			entry.Name, entry.Dir = p.place(n, what)
		} else if !p.placeWithOptions(n, what, &entry) {
			return
		}
		if entry.Name != "" && !has(paths, entry.Name) {
			paths = append(paths, entry)
		}
	})
	return paths
}

// placeWithOptions reads {path: P, exec: false}; there is no such choice of what
// is hidden.
func (p *parser) placeWithOptions(n *yaml.Node, what string, entry *Path) bool {
	fields := []field{{key: "path", read: func(n *yaml.Node) { entry.Name, entry.Dir = p.place(n, what) }}}
	if what != "filesystem.deny" {
		fields = append(fields, field{key: "exec", read: func(n *yaml.Node) {
			exec := true
			p.boolean(n, what+": exec", &exec)
			entry.NoExec = !exec
		}})
	}
	seen := p.mapping(n, what, fields)
	if seen != nil && seen["path"] == nil {
		p.fault(n, "%s: an entry needs a path", what)
	}
	return seen != nil
}

// place reads one path of a list, "" after a fault, and tells whether it was
// written with a slash at its end.
func (p *parser) place(n *yaml.Node, what string) (name string, dir bool) {
	n, name, ok := p.path(n, what)
	switch kernel := strings.HasPrefix(name+"/", "/proc/") || strings.HasPrefix(name+"/", "/dev/"); {
	case !ok:
	case name == "/" && what == "filesystem.read_write":
		p.fault(n, "%s: \"/\" would make every file writable; name the directories", what)
	case what == "filesystem.deny" && (name == "/" || kernel):
		p.fault(n, "%s: %s cannot be hidden: programs need what lies in /, /proc and /dev, and of those only what is safe is there", what, name)
	default:
		return name, strings.HasSuffix(n.Value, "/") && name != "/"
	}
	return "", false
}

// hostPaths reads a list of paths of the host.
func (p *parser) hostPaths(n *yaml.Node, what string) []string {
	paths := []string{}
	p.list(n, what, func(n *yaml.Node) {
		if _, name, ok := p.path(n, what); ok {
			paths = append(paths, name)
		}
	})
	return paths
}

// maxPath is PATH_MAX less the terminating zero (limits.h).
const maxPath = 4095

// path reads an absolute path. One slash at its end is taken off; everything
// else that is not clean is a fault: what is granted must be what is read.
func (p *parser) path(n *yaml.Node, what string) (*yaml.Node, string, bool) {
	n, s, ok := p.text(n, what)
	if !ok {
		return n, "", false
	}
	name := s
	if len(name) > 1 {
		name = strings.TrimSuffix(name, "/")
	}
	switch {
	case !strings.HasPrefix(s, "/"):
		p.fault(n, "%s: the path %q must be absolute: begin with /", what, s)
	case len(s) > maxPath:
		p.fault(n, "%s: the path has more than %d bytes", what, maxPath)
	case strings.ContainsRune(s, 0):
		p.fault(n, "%s: the path %q contains a zero byte", what, s)
	case slices.Contains(strings.Split(s, "/"), ".."):
		p.fault(n, "%s: the path %q must not contain \"..\"", what, s)
	case path.Clean(name) != name:
		p.fault(n, "%s: write the path %q as %q", what, s, path.Clean(name))
	default:
		return n, name, true
	}
	return n, "", false
}

func (p *parser) landlock(n *yaml.Node, l *Landlock) {
	p.mapping(n, "landlock", []field{{key: "compatibility", read: func(n *yaml.Node) {
		l.BestEffort = p.choice(n, "landlock.compatibility", "hard_requirement", "best_effort") == "best_effort"
	}}})
}

func (p *parser) seccomp(n *yaml.Node, s *Seccomp) {
	p.mapping(n, "seccomp", []field{
		{key: "deny", read: func(n *yaml.Node) { s.Deny = p.syscalls(n, "seccomp.deny", seccomp.CanDeny) }},
		{key: "allow", read: func(n *yaml.Node) { s.Allow = p.syscalls(n, "seccomp.allow", seccomp.CanAllow) }},
	})
	for _, a := range s.Allow {
		if i := slices.IndexFunc(s.Deny, func(d Syscall) bool { return d.Name == a.Name }); i >= 0 {
			p.faultAt(max(a.Line, s.Deny[i].Line), 1, "%s is in seccomp.allow (line %d) and in seccomp.deny (line %d); write it in one of them", a.Name, a.Line, s.Deny[i].Line)
		}
	}
}

// syscalls reads names of system calls, and of groups of them, each of which
// must be one that can be denied or allowed.
func (p *parser) syscalls(n *yaml.Node, what string, can func(string) error) []Syscall {
	var calls []Syscall
	p.list(n, what, func(n *yaml.Node) {
		if follow(n).Kind == yaml.MappingNode {
			p.fault(n, "%s: a group is one word, such as group:debugging, without a space", what)
			return
		}
		n, s, ok := p.text(n, what)
		if !ok {
			return
		}
		err := can(s)
		unknown, isUnknown := errors.AsType[*seccomp.UnknownError](err)
		switch {
		case isUnknown:
			p.fault(n, "%s: %v (%s)", what, err, possible(unknown.Word, unknown.Known))
		case err != nil:
			p.fault(n, "%s: %v", what, err)
		case !slices.ContainsFunc(calls, func(c Syscall) bool { return c.Name == s }):
			calls = append(calls, Syscall{Name: s, Line: n.Line})
		}
	})
	return calls
}

// capabilityNames are those of capabilities(7), by number, up to Linux 6.18.
var capabilityNames = strings.Fields(`
	CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK
	IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
	SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
	AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
	BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

func (p *parser) capabilities(n *yaml.Node) *Capabilities {
	c := &Capabilities{Keep: []string{}}
	seen := p.mapping(n, "capabilities", []field{{key: "keep", read: func(n *yaml.Node) {
		p.list(n, "capabilities.keep", func(n *yaml.Node) {
			n, s, ok := p.text(n, "capabilities.keep")
			name := strings.TrimPrefix(strings.ToUpper(s), "CAP_")
			switch {
			case !ok:
			case !slices.Contains(capabilityNames, name):
				p.fault(n, "capabilities.keep: unknown capability %q (%s)", s, possible(name, capabilityNames))
			case !slices.Contains(c.Keep, name):
				c.Keep = append(c.Keep, name)
			}
		})
	}}})
	if seen != nil && seen["keep"] == nil {
		p.fault(n, "capabilities needs keep (for none write \"keep: []\")")
	}
	return c
}

func (p *parser) network(n *yaml.Node, to *Network) {
	seen := p.mapping(n, "network", []field{
		{key: "uplink", read: func(n *yaml.Node) { to.Uplink = p.uplink(n) }},
		{key: "ingress", read: func(n *yaml.Node) { to.Ingress = p.ingress(n) }},
		{key: "dns", read: func(n *yaml.Node) { to.DNS = p.nameservers(n) }},
		{key: "proxy", read: func(n *yaml.Node) { to.Proxy = p.proxy(n) }},
		{key: "proxy_auth_file", read: func(n *yaml.Node) { _, to.ProxyAuth, _ = p.path(n, "network.proxy_auth_file") }},
	})
	if seen != nil && seen["proxy_auth_file"] != nil && seen["proxy"] == nil {
		p.fault(seen["proxy_auth_file"], "network.proxy_auth_file needs network.proxy")
	}
}

// proxy reads http://HOST:PORT and returns HOST:PORT, the host in normal form.
// The faults do not repeat what may hold a password.
func (p *parser) proxy(n *yaml.Node) string {
	const example = "such as http://proxy.example.org:3128"
	n, s, ok := p.text(n, "network.proxy")
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "":
		p.fault(n, "network.proxy is not the URL of a proxy, %s", example)
		return ""
	case u.User != nil:
		p.fault(n, "network.proxy holds credentials, which a policy is no place for; write \"user:password\" to a file of root's and name it by proxy_auth_file")
		return ""
	case u.Scheme != "http":
		p.fault(n, "network.proxy %q cannot be used: only http:// is spoken to a proxy, %s", s, example)
		return ""
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		p.fault(n, "network.proxy %q has a path; write the host and port alone, %s", s, example)
		return ""
	}
	host, port := u.Hostname(), u.Port()
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		p.fault(n, "network.proxy %q needs a port, %s", s, example)
		return ""
	}
	addr, err := netip.ParseAddr(host)
	if err == nil {
		if addr = addr.Unmap().WithZone(""); addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			p.fault(n, "network.proxy: %s is never reachable from a sandbox; name an address of the network", addr)
			return ""
		}
		return net.JoinHostPort(addr.String(), port)
	}
	if host, err = NormalHost(host); err != nil {
		p.fault(n, "network.proxy: %v", err)
		return ""
	}
	return net.JoinHostPort(host, port)
}

func (p *parser) uplink(n *yaml.Node) string {
	if strings.HasPrefix(follow(n).Value, "/") {
		_, name, _ := p.path(n, "network.uplink")
		return name
	}
	return p.choice(n, "network.uplink", UplinkAuto, UplinkHost, UplinkNone, "/path/of/a/namespace")
}

func (p *parser) ingress(n *yaml.Node) string {
	if follow(n).Kind != yaml.MappingNode {
		const example = "{ports: [80, 8000-8100]}"
		word := p.choice(n, "network.ingress", IngressAll, IngressNone, example)
		if word == example {
			p.fault(n, "network.ingress: write it without the quotes")
		}
		return word
	}
	var ranges []PortRange
	seen := p.mapping(n, "network.ingress", []field{{key: "ports", read: func(n *yaml.Node) { ranges = p.ports(n) }}})
	if seen != nil && seen["ports"] == nil {
		p.fault(n, "network.ingress needs ports (for no port write \"ingress: none\")")
	}
	return portList(ranges)
}

// portList writes ranges in one way: in order, and none touches another.
func portList(ranges []PortRange) string {
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var list []string
	for i := 0; i < len(ranges); {
		r := ranges[i]
		for i++; i < len(ranges) && int(ranges[i].First) <= int(r.Last)+1; i++ {
			r.Last = max(r.Last, ranges[i].Last)
		}
		list = append(list, r.String())
	}
	return strings.Join(list, ",")
}

func (p *parser) nameservers(n *yaml.Node) []netip.Addr {
	var servers []netip.Addr
	p.list(n, "network.dns", func(n *yaml.Node) {
		n, s, ok := p.text(n, "network.dns")
		if !ok {
			return
		}
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.IsUnspecified() || addr.IsMulticast() {
			p.fault(n, "network.dns: %q is not the address of a name server, such as 192.0.2.53 (port 53 is meant)", s)
			return
		}
		servers = append(servers, addr.Unmap())
	})
	return servers
}
