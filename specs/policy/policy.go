package policy

import (
	"net/netip"
	"slices"
	"time"
)

// Policy is what one sandbox may do. Parse fills in every default, so that
// nothing outside this package needs to know them. It is not changed after
// that, and may be asked by many goroutines at once; the zero Policy allows
// nothing.
type Policy struct {
	File   string // as given to Parse; empty for the built-in default
	Digest string // sha256 of the source, hexadecimal

	Filesystem   Filesystem
	Landlock     Landlock
	Seccomp      Seccomp
	Capabilities *Capabilities // nil: the engine's, cut to the ceiling
	Network      Network
	Egress       Egress

	// Unconfined is set by the built-in policy of that name alone: every
	// layer is off. It exists for conformance tests.
	Unconfined bool

	match *matcher
}

// Filesystem is layer 1: what Landlock lets through.
type Filesystem struct {
	ReadOnly       []Path
	ReadWrite      []Path
	Deny           []Path // hidden, wherever they lie
	WriteExecute   bool   // default true: what can be written can be executed
	IncludeWorkdir bool   // default true
	Image          ImageMode
	Volumes        VolumeMode
	AllowVolumes   []string // host paths that the guard would refuse
	AllowDevices   []string // device nodes that the guard would refuse
}

// Path is an absolute, clean path inside the container.
type Path struct {
	Name     string
	Optional bool // from the built-in lists: skipped where the image lacks it
	Dir      bool // written with a slash at its end: a directory
	NoExec   bool // exec: false
	Line     int  // 0: built-in
}

// ImageMode is what of the image may be read and executed beyond the lists.
type ImageMode string

// The image modes: see DESIGN's layer 1.
const (
	ImageAuto   ImageMode = "auto"   // every top-level directory but those of users and the system's state
	ImageStrict ImageMode = "strict" // the lists only
)

// VolumeMode is what becomes of the mounts that the engine adds.
type VolumeMode string

// The volume modes.
const (
	VolumesFollow     VolumeMode = "follow"      // granted as they are mounted, unless guarded
	VolumesPolicyOnly VolumeMode = "policy_only" // granted only by the lists
)

// Landlock says how much of layer 1 is required of the kernel.
type Landlock struct {
	BestEffort bool // compatibility: best_effort
}

// Seccomp changes layer 2's second filter: what is denied besides, and what is
// let be. A call that is denied by name stays so, whatever group is allowed.
type Seccomp struct {
	Deny  []Syscall
	Allow []Syscall
}

// Syscall is the name of a system call, or in Allow that of a group of them as
// "group:NAME", and the line it stands on.
type Syscall struct {
	Name string
	Line int
}

// Capabilities replaces the engine's capabilities; the ceiling still holds.
type Capabilities struct {
	Keep []string // without the prefix CAP_, upper case
}

// Network is layer 3.
type Network struct {
	Uplink  string // one of the words below, or the absolute path of a namespace
	Ingress string // IngressAll, IngressNone, or ports: "80,8000-8100"
	DNS     []netip.Addr
	// Proxy is by which every connection goes, as host:port; empty: none does.
	// It resolves the names, so that no address of theirs can be checked.
	Proxy string
	// ProxyAuth is the host's file with the "user:password" for it, or empty.
	ProxyAuth string
}

// The words of network.uplink and network.ingress.
const (
	UplinkAuto  = "auto" // what the engine plugged in
	UplinkHost  = "host" // the host's own network
	UplinkNone  = "none" // no way out; what the engine plugged in is for those who come in
	IngressAll  = "all"  // the engine decides who may knock
	IngressNone = "none"
)

// Egress is layer 4.
type Egress struct {
	Rules    []Rule
	Deny     []Rule
	Audit    bool // enforce: audit: what no rule allows passes, and is recorded
	Defaults Defaults
}

// Defaults hold where no rule says otherwise; zero means no bound but the
// gateway's own.
type Defaults struct {
	Hold           time.Duration // how long an unlisted connection waits for the operator; 0: not at all
	MaxConnections int           // of the sandbox, at once
	MaxUpload      int64         // as in Rule
	IdleTimeout    time.Duration // as in Rule
}

// Rule lets a program open connections, or with Egress.Deny forbids it. Host
// or CIDR is set, never both.
type Rule struct {
	Host         string // normal form; "*." or "**." before it for subdomains
	CIDR         netip.Prefix
	Ports        []PortRange // of a deny rule: empty means every port
	AllowPrivate []netip.Prefix
	Raw          bool      // any protocol, also on ports 80 and 443
	Name         string    // shown in records; may be empty
	Expires      time.Time // UTC; zero: never
	Line         int       // 0: built-in

	// Audit is "enforce: audit": the rule is tried out. What it alone would
	// decide passes, and is recorded with the reason that it would be refused for.
	Audit bool

	// What follows only rules that allow have; zero means no bound.
	Binaries       []string      // patterns of executables that may use the rule; none: any
	MaxConnections int           // open at once by this rule
	Rate           Rate          // beginning by this rule
	MaxUpload      int64         // bytes from the program, of one connection
	IdleTimeout    time.Duration // without a byte in either direction
	TTL            time.Duration // from Begin on
	DNS            []string      // TXT, MX, SRV: asked for besides addresses

	ends time.Time // of TTL, with a monotonic reading; zero: Begin was not called
}

// PortRange is an inclusive range of ports, 1 to 65535.
type PortRange struct{ First, Last uint16 }

// Verdict is what a policy says about a host and port.
type Verdict struct {
	Allow  bool
	Reason Reason // empty if Allow
	Rule   *Rule  // that decided; nil if none matched
	// Would is, with Allow, why it would be refused if "enforce: audit" did
	// not let it pass; empty: it would not.
	Would Reason
	// Asks is set if the owner was unknown and a rule with binaries was passed
	// over for that: with the owner, the verdict may be another.
	Asks bool
}

// Reason is why an attempt is refused; the audit log, refusals and the
// console show it. The policy gives the first five; the gateway the others.
type Reason string

// The reasons.
const (
	NotListed       Reason = "not-listed"        // no rule names this host and port
	Denied          Reason = "denied"            // a deny rule, or the operator
	BadName         Reason = "bad-name"          // not a host name
	DirectAddress   Reason = "direct-address"    // an IP address that no cidr rule names
	WrongProgram    Reason = "wrong-program"     // a rule names this host and port for other executables, or whose it is could not be told
	NoUplink        Reason = "no-uplink"         // the sandbox has no way out
	Forbidden       Reason = "forbidden-address" // never reachable: loopback, link-local, metadata, our own
	Private         Reason = "private-address"   // not globally reachable, and no allow_private covers it
	NotTLS          Reason = "not-tls"           // port 443 carries TLS only, unless the rule is raw
	NotHTTP         Reason = "not-http"          // port 80 carries HTTP/1 only, unless the rule is raw
	NameMismatch    Reason = "name-mismatch"     // SNI or Host differs from the name that was looked up
	NoName          Reason = "no-name"           // TLS without SNI, HTTP without Host
	Malformed       Reason = "malformed"         // a ClientHello or request that does not parse
	Unresolvable    Reason = "unresolvable"      // the name has no address
	TooMany         Reason = "too-many"          // a limit of the gateway
	TooOften        Reason = "too-often"         // more connections in a time than the rule allows
	UploadLimit     Reason = "upload-limit"      // the program sent all that max_upload lets it
	Idle            Reason = "idle"              // no byte passed for the rule's idle_timeout
	Cancelled       Reason = "cancelled"         // the program went away while its connection waited for the operator
	Revoked         Reason = "revoked"           // a reload or a decision took the permission away
	Unrecorded      Reason = "unrecorded"        // the audit log cannot be written
	SearchDomain    Reason = "search-domain"     // a name below a search domain that no rule matches
	UnsupportedType Reason = "unsupported-type"  // UDP, or a DNS question we never answer
)

// Known tells whether a text is one of the reasons.
func (r Reason) Known() bool { return slices.Contains(reasons, r) }

var reasons = []Reason{NotListed, Denied, BadName, DirectAddress, WrongProgram, NoUplink, Forbidden, Private, NotTLS, NotHTTP, NameMismatch,
	NoName, Malformed, Unresolvable, TooMany, TooOften, UploadLimit, Idle, Cancelled, Revoked, Unrecorded, SearchDomain, UnsupportedType}
