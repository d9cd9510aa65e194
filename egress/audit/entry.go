package audit

import (
	"fmt"
	"path"
	"time"
)

// Version is the OCSF schema that the lines follow.
const Version = "1.8.0"

// Entry is one line to be: a *Network, a *Denied or a *Change.
type Entry interface {
	// base is the part that Append fills in.
	base() *Base
}

// Base is what every line has. Append sets the sequence number, the link to
// the line before, and the time if there is none.
type Base struct {
	ClassUID    int      `json:"class_uid"`
	CategoryUID int      `json:"category_uid"`
	ActivityID  int      `json:"activity_id"`
	TypeUID     int      `json:"type_uid"` // class * 100 + activity
	Time        int64    `json:"time"`     // milliseconds since 1970
	SeverityID  int      `json:"severity_id"`
	StatusID    int      `json:"status_id"` // 1 success, 2 failure
	Message     string   `json:"message,omitempty"`
	Metadata    Metadata `json:"metadata"`
	Device      Device   `json:"device"`
}

func (b *Base) base() *Base { return b }

// Metadata names the line and who wrote it.
type Metadata struct {
	Version  string  `json:"version"`
	Product  Product `json:"product"`
	UID      string  `json:"uid,omitempty"` // the request: joins the lines of one connection
	Sequence uint64  `json:"sequence"`
	// Profiles name what of OCSF's is said beside the class.
	Profiles []string `json:"profiles,omitempty"`
}

// Product is the writer.
type Product struct {
	Name   string `json:"name"`
	Vendor string `json:"vendor_name"`
}

// Device is the sandbox.
type Device struct {
	TypeID int    `json:"type_id"` // 99: other
	Type   string `json:"type"`
	UID    string `json:"uid"` // the container's id
}

// Sandbox returns the Device of the container id.
func Sandbox(id string) Device { return Device{TypeID: 99, Type: "container", UID: id} }

// Severities (OCSF severity_id).
const (
	Informational = 1
	Low           = 2
	High          = 4
)

// Activities of Network (OCSF 4001 activity_id).
const (
	ActivityOpen   = 1
	ActivityClose  = 2
	ActivityReset  = 3
	ActivityFail   = 4
	ActivityRefuse = 5
	ActivityOther  = 99 // of Denied, too
)

// Dispositions of Network and Denied (OCSF disposition_id).
const (
	Allowed       = 1
	Blocked       = 2
	Delayed       = 14
	Logged        = 17 // allowed, and would not be if it were enforced
	AccessRevoked = 24
	Errored       = 27
)

// Network is one decision about a connection, or its end.
type Network struct {
	Base
	ActionID      int         `json:"action_id"` // 1 allowed, 2 denied
	DispositionID int         `json:"disposition_id"`
	Actor         *Actor      `json:"actor,omitempty"`
	Src           *Endpoint   `json:"src_endpoint,omitempty"`
	Dst           *Endpoint   `json:"dst_endpoint,omitempty"`
	Connection    *Connection `json:"connection_info,omitempty"`
	Rule          *Rule       `json:"firewall_rule,omitempty"`
	Traffic       *Traffic    `json:"traffic,omitempty"`
	StartTime     int64       `json:"start_time,omitempty"` // milliseconds since 1970
	Duration      int64       `json:"duration,omitempty"`   // milliseconds
	Count         int         `json:"count,omitempty"`      // attempts folded into this line
	Unmapped      NetworkMore `json:"unmapped"`
}

// NetworkMore is what OCSF has no field for.
type NetworkMore struct {
	Link
	Verdict    string `json:"verdict"`
	Reason     string `json:"reason,omitempty"`
	Would      string `json:"would,omitempty"` // why it would be refused, if that were enforced
	Detail     string `json:"detail,omitempty"`
	Method     string `json:"method,omitempty"`
	Generation uint64 `json:"generation"`       // of the policy that decided
	Unsure     string `json:"unsure,omitempty"` // why the actor may be another process
}

// Actor is who opened the connection.
type Actor struct {
	AppName string  `json:"app_name,omitempty"` // in place of a process that is not known
	Process Process `json:"process,omitzero"`
}

// Process is a program in the sandbox. Its name is its own claim; the file is the
// kernel's word. Its arguments are not kept: they hold passwords and addresses
// with what was asked for.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name,omitempty"`
	File *File  `json:"file,omitempty"`
	User *User  `json:"user,omitempty"`
	// Container is which one it lives in, of those behind the gateway.
	Container *Container `json:"container,omitempty"`
	Ancestry  []Ancestor `json:"ancestry,omitempty"` // nearest first
}

// IsZero tells whether no process is meant.
func (p Process) IsZero() bool {
	return p.PID == 0 && p.Name == "" && p.File == nil && p.User == nil && p.Container == nil && len(p.Ancestry) == 0
}

// Container is one behind a gateway (OCSF's container profile).
type Container struct {
	UID string `json:"uid"`
}

// File is an executable.
type File struct {
	Name   string `json:"name"` // the end of its path
	Path   string `json:"path"`
	TypeID int    `json:"type_id"` // 1: a regular file
}

// NewFile returns the executable of a path.
func NewFile(executable string) *File {
	return &File{Name: path.Base(executable), Path: executable, TypeID: 1}
}

// User is the owner of a process.
type User struct {
	UID string `json:"uid"`
}

// Ancestor is a parent's executable.
type Ancestor struct {
	Path string `json:"path"`
}

// Endpoint is one end of a connection.
type Endpoint struct {
	Hostname string `json:"hostname,omitempty"`
	IP       string `json:"ip,omitempty"`
	Port     uint16 `json:"port,omitempty"`
	SvcName  string `json:"svc_name,omitempty"` // of one that has neither name nor address
	UID      string `json:"uid,omitempty"`      // the sandbox, of which nothing else is known
}

// Connection is the protocol, and who called whom.
type Connection struct {
	ProtocolName string `json:"protocol_name"`
	ProtocolNum  int    `json:"protocol_num"` // 6 TCP, 17 UDP; OtherProtocol
	DirectionID  int    `json:"direction_id"` // Inbound or Outbound
}

// OtherProtocol is the number of several protocols, or of one that is not known.
const OtherProtocol = -1

// Directions of a Connection (OCSF direction_id), seen from the sandbox.
const (
	Inbound  = 1
	Outbound = 2
)

// Rule is what decided: file:line, "grant" or "built-in".
type Rule struct {
	Name string `json:"name"`
}

// Traffic is counted from the sandbox's side. Of connections that the gateway
// carries it is what programs sent and got; of inbound ones, which the kernel
// counts, it is whole IP packets.
type Traffic struct {
	In         int64 `json:"bytes_in"`              // to the program
	Out        int64 `json:"bytes_out"`             // from the program
	PacketsIn  int64 `json:"packets_in,omitempty"`  // of inbound connections only
	PacketsOut int64 `json:"packets_out,omitempty"` // likewise
}

// Activities of Denied (OCSF 1001 and 1003 activity_id).
const (
	ActivityCreate = 1
	ActivityRead   = 2
	ActivityUpdate = 3
	ActivityDelete = 4
	ActivityRename = 5
	ActivityInvoke = 4 // of a system call
)

// Denied is what the kernel refused to a program in the sandbox.
type Denied struct {
	Base
	ActionID      int        `json:"action_id"`      // 2 denied
	DispositionID int        `json:"disposition_id"` // Blocked
	Actor         *Actor     `json:"actor,omitempty"`
	File          *Object    `json:"file,omitempty"`   // of File System Activity
	Kernel        *Kernel    `json:"kernel,omitempty"` // of Kernel Activity
	Count         int        `json:"count,omitempty"`  // denials that stand in this line only
	Unmapped      DeniedMore `json:"unmapped"`
}

// DeniedMore is what OCSF has no field for.
type DeniedMore struct {
	Link
	Layer  string   `json:"layer"`            // "landlock" or "seccomp"
	Rights []string `json:"rights,omitempty"` // of Landlock, as the kernel names them
	Device string   `json:"device,omitempty"`
	Inode  string   `json:"inode,omitempty"`
	// OrChild says that the actor is the first program of the container or of
	// an exec, and that it or one of its descendants was refused.
	OrChild bool `json:"or_child,omitempty"`
}

// Object is what a program wanted to reach, as it saw it.
type Object struct {
	Name   string `json:"name"`
	Path   string `json:"path"`
	TypeID int    `json:"type_id"` // 0: unknown
}

// Kernel is what a program wanted of the kernel.
type Kernel struct {
	Name       string `json:"name"`
	TypeID     int    `json:"type_id"` // 2 system call, 99 other
	SystemCall string `json:"system_call,omitempty"`
}

// Kinds of Change.
const (
	KindSegment   = "segment"   // the first line of a sandbox
	KindContinued = "continued" // the first line of a file that continues an older one
	KindRecovered = "recovered" // what a crash or an edit had done to the log
	KindNote      = "note"      // what an auditor wants to know about the sandbox
	KindPolicy    = "policy"    // other rules are in force
	KindFault     = "fault"     // a policy file that is not
	KindDecision  = "decision"  // an operator's
	KindWorker    = "worker"    // the gateway's worker ended or came back
	KindJoined    = "joined"    // one more container lives behind the gateway
	KindLeft      = "left"      // one less, and not the last
	KindMissed    = "missed"    // what may have happened of which nothing is known
	KindEnd       = "end"       // the last line of a sandbox
)

// Change is something that happened to the sandbox, not in it.
type Change struct {
	Base
	Unmapped ChangeMore `json:"unmapped"`
}

// ChangeMore is what OCSF has no field for.
type ChangeMore struct {
	Link
	Kind         string `json:"kind"`
	Root         string `json:"root,omitempty"`
	PolicyName   string `json:"policy_name,omitempty"`
	PolicyFile   string `json:"policy_file,omitempty"`
	PolicyDigest string `json:"policy_digest,omitempty"` // sha256, hexadecimal
	Generation   uint64 `json:"generation,omitempty"`
	By           string `json:"by,omitempty"` // of a decision: the peer's uid and pid
	Verb         string `json:"verb,omitempty"`
	Host         string `json:"host,omitempty"`
	Port         uint16 `json:"port,omitempty"`
	Grant        uint64 `json:"grant,omitempty"` // number of what the decision gave or took
	Count        int    `json:"count,omitempty"`
	// Torn is the SHA-256 of the unfinished piece that this line seals.
	Torn string `json:"torn,omitempty"`
}

// Link chains a line to the one before it.
type Link struct {
	Prev string `json:"prev"` // sha256 of its bytes without the line feed, hexadecimal
}

// link finds the field to fill in.
func (l *Link) link() *Link { return l }

// profiles are those of what programs did: device and actor, what became of it,
// and in which container.
var profiles = []string{"host", "security_control", "container"}

// NewNetwork returns a line about a connection of the sandbox id.
func NewNetwork(id string, activity int) *Network {
	n := &Network{Base: newBase(id, 4001, 4, activity)}
	n.Metadata.Profiles = profiles
	return n
}

// NewFileDenial returns a line about a file that a program in the sandbox id was
// refused (OCSF File System Activity).
func NewFileDenial(id string, activity int) *Denied {
	return newDenied(newBase(id, 1001, 1, activity))
}

// NewKernelDenial returns a line about anything else of the kernel's that it was
// refused (OCSF Kernel Activity).
func NewKernelDenial(id string, activity int) *Denied {
	return newDenied(newBase(id, 1003, 1, activity))
}

func newDenied(b Base) *Denied {
	b.SeverityID, b.StatusID = Low, 2
	b.Metadata.Profiles = profiles
	return &Denied{Base: b, ActionID: 2, DispositionID: Blocked}
}

// NewChange returns a line of the given kind about the sandbox id itself.
func NewChange(id, kind, message string) *Change {
	c := &Change{Base: newBase(id, 5019, 5, 1)}
	c.Message = message
	c.Unmapped.Kind = kind
	return c
}

func newBase(id string, class, category, activity int) Base {
	return Base{
		ClassUID:    class,
		CategoryUID: category,
		ActivityID:  activity,
		TypeUID:     class*100 + activity,
		SeverityID:  Informational,
		StatusID:    1,
		Metadata:    Metadata{Version: Version, Product: Product{Name: "nemoclaw", Vendor: "nemoclaw"}},
		Device:      Sandbox(id),
	}
}

// encode appends to a text the line of e, with its line feed, as number seq after
// the line whose hash is prev.
func encode(to []byte, e Entry, seq uint64, prev string, now time.Time) ([]byte, error) {
	b := e.base()
	b.Metadata.Sequence = seq
	if b.Time == 0 {
		b.Time = now.UnixMilli()
	}
	switch e := e.(type) {
	case *Network:
		e.Unmapped.link().Prev = prev
	case *Denied:
		e.Unmapped.link().Prev = prev
	case *Change:
		e.Unmapped.link().Prev = prev
	default:
		return nil, fmt.Errorf("cannot record a %T", e)
	}
	start := len(to)
	to, err := text(to, e)
	if err != nil {
		return nil, err
	}
	to = append(to, '\n')
	if n := len(to) - start; n > MaxLine {
		return nil, fmt.Errorf("cannot record: a line of %d bytes is longer than %d", n, MaxLine)
	}
	return to, nil
}
