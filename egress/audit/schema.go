package audit

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// What OCSF says of the lines, and what we make of it: for whoever feeds them to
// a SIEM, as a document (FIELDS.md) and as a test of every line.

// Need is how OCSF calls for an attribute.
type Need string

const (
	Required    Need = "required"
	Recommended Need = "recommended"
	Optional    Need = "optional"
)

// Type is how a value is written in JSON.
type Type string

const (
	Integer Type = "integer"
	Long    Type = "long" // an integer that may be large
	Moment  Type = "timestamp"
	Text    Type = "string"
	Words   Type = "strings"
	Inner   Type = "object"  // of Attribute.Object
	Inners  Type = "objects" // a list of them
	Free    Type = "json"    // whatever it is
)

// Attribute is one of a class or of an object.
type Attribute struct {
	Name   string
	Need   Need
	Type   Type
	Object string // of Inner and Inners: its name in Shapes
	Values []int  // of an Integer: those that there are; none: any
	Ours   string // where it comes from; for one that is not written "-" and why
}

// absent tells whether an attribute is never written.
func (a Attribute) absent() bool { return strings.HasPrefix(a.Ours, "-") }

// Class is what one kind of line is.
type Class struct {
	UID, Category int
	Name          string
	Attributes    []Attribute
	OneOf         []string // of which one must be there
}

// Shape is that of an object, a part of lines.
type Shape struct {
	Name       string
	Attributes []Attribute
	OneOf      []string
}

func upTo(n int) (values []int) {
	for i := range n + 1 {
		values = append(values, i)
	}
	return append(values, 99)
}

// classified are the attributes of every class.
func classified(activities []int, more ...Attribute) []Attribute {
	return append([]Attribute{
		{Name: "class_uid", Need: Required, Type: Integer, Ours: "the class"},
		{Name: "category_uid", Need: Required, Type: Integer, Ours: "its category"},
		{Name: "activity_id", Need: Required, Type: Integer, Values: activities, Ours: "the verdict, or what was tried"},
		{Name: "type_uid", Need: Required, Type: Integer, Ours: "class_uid times 100, and activity_id"},
		{Name: "time", Need: Required, Type: Moment, Ours: "when it was written down; of denials, the kernel's"},
		{Name: "severity_id", Need: Required, Type: Integer, Values: upTo(6), Ours: "1 as it should be, 2 refused, 4 look at it"},
		{Name: "status_id", Need: Recommended, Type: Integer, Values: upTo(2), Ours: "1 it took place, 2 it did not"},
		{Name: "message", Need: Recommended, Type: Text, Ours: "a sentence, where no attribute says it"},
		{Name: "metadata", Need: Required, Type: Inner, Object: "metadata", Ours: "the line and its writer"},
		{Name: "device", Need: Required, Type: Inner, Object: "device", Ours: "the sandbox (profile host)"},
		{Name: "unmapped", Need: Optional, Type: Free, Ours: "what OCSF has no word for, and the chain"},
		{Name: "timezone_offset", Need: Recommended, Type: Integer, Ours: "- times are UTC"},
		{Name: "observables", Need: Recommended, Type: Free, Ours: "- the endpoints and the process say it"},
	}, more...)
}

// controlled are those of the profile security_control, on what a program did.
func controlled(actor Need) []Attribute {
	return []Attribute{
		{Name: "action_id", Need: Recommended, Type: Integer, Values: upTo(4), Ours: "1 allowed, 2 denied"},
		{Name: "disposition_id", Need: Recommended, Type: Integer, Values: upTo(27), Ours: "1 allowed, 2 blocked, 14 waits for the operator, 17 allowed though the policy would not, 24 revoked, 27 the far end failed"},
		{Name: "actor", Need: actor, Type: Inner, Object: "actor", Ours: "who did it (profile host)"},
		{Name: "count", Need: Optional, Type: Integer, Ours: "how many stand in this one line"},
		{Name: "is_alert", Need: Recommended, Type: Free, Ours: "- severity_id"},
		{Name: "confidence_id", Need: Recommended, Type: Integer, Ours: "- unmapped.unsure says why the actor may be another"},
	}
}

// Classes are those of the lines (schema.ocsf.io/1.8.0/classes).
func Classes() []Class {
	return []Class{
		{4001, 4, "Network Activity: connections, questions to name servers, and packets that the fence refused", classified(upTo(7), append(controlled(Optional),
			Attribute{Name: "src_endpoint", Need: Recommended, Type: Inner, Object: "network_endpoint", Ours: "who called"},
			Attribute{Name: "dst_endpoint", Need: Recommended, Type: Inner, Object: "network_endpoint", Ours: "who was called: the name that the program meant, and the address that was dialed"},
			Attribute{Name: "connection_info", Need: Recommended, Type: Inner, Object: "network_connection_info", Ours: "the protocol"},
			Attribute{Name: "traffic", Need: Recommended, Type: Inner, Object: "network_traffic", Ours: "with a connection's end"},
			Attribute{Name: "firewall_rule", Need: Optional, Type: Inner, Object: "firewall_rule", Ours: "what decided"},
			Attribute{Name: "start_time", Need: Optional, Type: Moment, Ours: "of connections from outside"},
			Attribute{Name: "duration", Need: Optional, Type: Long, Ours: "milliseconds, with a connection's end"},
			Attribute{Name: "is_src_dst_assignment_known", Need: Recommended, Type: Free, Ours: "- it always is"},
			Attribute{Name: "proxy", Need: Recommended, Type: Free, Ours: "- a company's proxy is told once, in a note"},
			Attribute{Name: "url", Need: Recommended, Type: Free, Ours: "- paths and queries hold secrets"},
		)...), []string{"src_endpoint", "dst_endpoint"}},
		{1001, 1, "File System Activity: what Landlock refused", classified(upTo(14), append(controlled(Required),
			Attribute{Name: "file", Need: Required, Type: Inner, Object: "file", Ours: "the file, as the program names it"},
		)...), nil},
		{1003, 1, "Kernel Activity: what seccomp refused, and Landlock where no file is meant", classified(upTo(4), append(controlled(Required),
			Attribute{Name: "kernel", Need: Required, Type: Inner, Object: "kernel", Ours: "the system call, or the right"},
		)...), nil},
		{5019, 5, "Device Config State Change: what happened to the sandbox itself, by unmapped.kind", classified(upTo(2),
			Attribute{Name: "state_id", Need: Recommended, Type: Integer, Ours: "- unmapped.kind"},
			Attribute{Name: "security_level_id", Need: Recommended, Type: Integer, Ours: "- nemoclawctl status proves each layer"},
			Attribute{Name: "prev_security_level_id", Need: Recommended, Type: Integer, Ours: "- likewise"},
			Attribute{Name: "security_states", Need: Recommended, Type: Free, Ours: "- likewise"},
			Attribute{Name: "prev_security_states", Need: Recommended, Type: Free, Ours: "- likewise"},
		), nil},
	}
}

// Shapes are those of the parts of the lines (schema.ocsf.io/1.8.0/objects).
func Shapes() []Shape {
	return []Shape{
		{"metadata", []Attribute{
			{Name: "version", Need: Required, Type: Text, Ours: "of OCSF: " + Version},
			{Name: "product", Need: Required, Type: Inner, Object: "product", Ours: "nemoclaw"},
			{Name: "sequence", Need: Optional, Type: Long, Ours: "the line's number, from 1"},
			{Name: "uid", Need: Optional, Type: Text, Ours: "the request: the same in all lines of a connection"},
			{Name: "profiles", Need: Optional, Type: Words, Ours: "host, security_control and container on what programs did"},
			{Name: "original_time", Need: Recommended, Type: Text, Ours: "- time"},
			{Name: "log_name", Need: Recommended, Type: Text, Ours: "- a file for each sandbox"},
			{Name: "log_provider", Need: Recommended, Type: Text, Ours: "- product"},
		}, nil},
		{"product", []Attribute{
			{Name: "name", Need: Recommended, Type: Text, Ours: "nemoclaw"},
			{Name: "vendor_name", Need: Required, Type: Text, Ours: "nemoclaw"},
			{Name: "version", Need: Recommended, Type: Text, Ours: "- nemoclaw --version"},
		}, []string{"name", "uid"}},
		{"device", []Attribute{
			{Name: "type_id", Need: Required, Type: Integer, Values: upTo(15), Ours: "99: other"},
			{Name: "type", Need: Optional, Type: Text, Ours: "container"},
			{Name: "uid", Need: Recommended, Type: Text, Ours: "the container's id"},
			{Name: "hostname", Need: Recommended, Type: Text, Ours: "- the log lies on its host"},
			{Name: "ip", Need: Recommended, Type: Text, Ours: "- src_endpoint"},
			{Name: "name", Need: Recommended, Type: Text, Ours: "- uid"},
			{Name: "region", Need: Recommended, Type: Text, Ours: "- not known"},
		}, nil},
		{"actor", []Attribute{
			{Name: "process", Need: Recommended, Type: Inner, Object: "process", Ours: "the program"},
			{Name: "app_name", Need: Optional, Type: Text, Ours: "\"unknown\" or \"several\", in its place"},
			{Name: "user", Need: Recommended, Type: Free, Ours: "- process.user"},
		}, []string{"process", "user", "app_name"}},
		{"process", []Attribute{
			{Name: "pid", Need: Recommended, Type: Integer, Ours: "in the host's pid namespace"},
			{Name: "name", Need: Recommended, Type: Text, Ours: "its own claim"},
			{Name: "file", Need: Recommended, Type: Inner, Object: "file", Ours: "its executable, the kernel's word"},
			{Name: "user", Need: Recommended, Type: Inner, Object: "user", Ours: "its owner"},
			{Name: "container", Need: Recommended, Type: Inner, Object: "container", Ours: "of those behind the gateway (profile container)"},
			{Name: "ancestry", Need: Optional, Type: Inners, Object: "process_entity", Ours: "executables inside the sandbox, nearest first"},
			{Name: "cmd_line", Need: Recommended, Type: Text, Ours: "- arguments hold passwords"},
			{Name: "created_time", Need: Recommended, Type: Moment, Ours: "- not kept"},
			{Name: "parent_process", Need: Recommended, Type: Free, Ours: "- ancestry"},
		}, []string{"pid", "uid"}},
		{"process_entity", []Attribute{
			{Name: "path", Need: Optional, Type: Text, Ours: "the executable"},
			{Name: "pid", Need: Recommended, Type: Integer, Ours: "- not kept"},
			{Name: "cmd_line", Need: Recommended, Type: Text, Ours: "- arguments hold passwords"},
		}, []string{"cmd_line", "name", "path", "pid", "uid"}},
		{"file", []Attribute{
			{Name: "name", Need: Required, Type: Text, Ours: "the end of its path"},
			{Name: "path", Need: Recommended, Type: Text, Ours: "in the container"},
			{Name: "type_id", Need: Required, Type: Integer, Values: upTo(7), Ours: "1 an executable, 0 what was refused"},
			{Name: "hashes", Need: Recommended, Type: Free, Ours: "- not read"},
		}, nil},
		{"user", []Attribute{
			{Name: "uid", Need: Recommended, Type: Text, Ours: "on the host"},
			{Name: "name", Need: Recommended, Type: Text, Ours: "- the host has none for it"},
			{Name: "type_id", Need: Recommended, Type: Integer, Ours: "- not known"},
		}, []string{"account", "name", "uid"}},
		{"container", []Attribute{
			{Name: "uid", Need: Recommended, Type: Text, Ours: "its id, as the engine gave it"},
			{Name: "name", Need: Recommended, Type: Text, Ours: "- the engine's"},
			{Name: "image", Need: Recommended, Type: Free, Ours: "- the engine's"},
			{Name: "hash", Need: Recommended, Type: Free, Ours: "- the engine's"},
			{Name: "size", Need: Recommended, Type: Long, Ours: "- the engine's"},
		}, []string{"uid", "name"}},
		{"network_endpoint", []Attribute{
			{Name: "hostname", Need: Recommended, Type: Text, Ours: "the name that the program meant"},
			{Name: "ip", Need: Recommended, Type: Text, Ours: "the address"},
			{Name: "port", Need: Recommended, Type: Integer, Ours: "the port"},
			{Name: "svc_name", Need: Recommended, Type: Text, Ours: "\"dns\", for a question about what is no name"},
			{Name: "uid", Need: Recommended, Type: Text, Ours: "the container's id, where nothing else is known"},
			{Name: "name", Need: Recommended, Type: Text, Ours: "- hostname"},
			{Name: "interface_uid", Need: Recommended, Type: Text, Ours: "- the gateway's is no program's"},
			{Name: "type_id", Need: Recommended, Type: Integer, Ours: "- not known"},
		}, []string{"ip", "uid", "name", "hostname", "svc_name"}},
		{"network_connection_info", []Attribute{
			{Name: "direction_id", Need: Required, Type: Integer, Values: upTo(4), Ours: "1 inbound, 2 outbound"},
			{Name: "protocol_name", Need: Recommended, Type: Text, Ours: "tcp, tls, http, dns; of a packet its protocol, such as udp"},
			{Name: "protocol_num", Need: Recommended, Type: Integer, Ours: "of IP: 6 TCP, 17 UDP; -1 several"},
		}, nil},
		{"network_traffic", []Attribute{
			{Name: "bytes_in", Need: Optional, Type: Long, Ours: "to the program"},
			{Name: "bytes_out", Need: Optional, Type: Long, Ours: "from the program"},
			{Name: "packets_in", Need: Optional, Type: Long, Ours: "of connections from outside"},
			{Name: "packets_out", Need: Optional, Type: Long, Ours: "likewise"},
			{Name: "bytes", Need: Recommended, Type: Long, Ours: "- the sum"},
			{Name: "packets", Need: Recommended, Type: Long, Ours: "- the sum"},
		}, nil},
		{"firewall_rule", []Attribute{
			{Name: "name", Need: Recommended, Type: Text, Ours: "file:line of the policy, \"grant\" or \"built-in\""},
			{Name: "uid", Need: Recommended, Type: Text, Ours: "- name"},
		}, []string{"name", "uid"}},
		{"kernel", []Attribute{
			{Name: "name", Need: Required, Type: Text, Ours: "the system call, or Landlock's rights"},
			{Name: "type_id", Need: Required, Type: Integer, Values: upTo(3), Ours: "2 a system call, 99 a right"},
			{Name: "system_call", Need: Optional, Type: Text, Ours: "the system call"},
		}, nil},
	}
}

// Conforms says what of a line is not as the tables say; nothing, if it is.
func Conforms(line []byte) (faults []string) {
	var fields map[string]any
	dec := json.NewDecoder(strings.NewReader(string(line)))
	dec.UseNumber()
	if err := dec.Decode(&fields); err != nil {
		return []string{"it is no JSON: " + err.Error()}
	}
	class, category, activity, kind := number64(fields["class_uid"]), number64(fields["category_uid"]), number64(fields["activity_id"]), number64(fields["type_uid"])
	classes := Classes()
	i := slices.IndexFunc(classes, func(c Class) bool { return int64(c.UID) == class })
	if i < 0 {
		return []string{fmt.Sprintf("class_uid: %d is none of ours", class)}
	}
	if category != int64(classes[i].Category) || kind != class*100+activity {
		faults = append(faults, fmt.Sprintf("category_uid %d and type_uid %d are not those of class_uid %d and activity_id %d", category, kind, class, activity))
	}
	return append(faults, conforms("", fields, classes[i].Attributes, classes[i].OneOf)...)
}

func conforms(at string, fields map[string]any, known []Attribute, oneOf []string) (faults []string) {
	for name := range fields {
		if !slices.ContainsFunc(known, func(a Attribute) bool { return a.Name == name && !a.absent() }) {
			faults = append(faults, at+name+": the table does not say that it is written")
		}
	}
	for _, a := range known {
		v, there := fields[a.Name]
		if !there && a.Need == Required {
			faults = append(faults, at+a.Name+": it is required")
		}
		if there {
			faults = append(faults, a.conforms(at+a.Name, v)...)
		}
	}
	if len(oneOf) > 0 && !slices.ContainsFunc(oneOf, func(name string) bool { return fields[name] != nil }) {
		faults = append(faults, fmt.Sprintf("%sone of %s is required", at, strings.Join(oneOf, ", ")))
	}
	slices.Sort(faults)
	return faults
}

// conforms looks at the value of an attribute.
func (a Attribute) conforms(at string, v any) []string {
	wrong := []string{fmt.Sprintf("%s: %v is no %s", at, v, a.Type)}
	switch a.Type {
	case Integer, Long, Moment:
		n, ok := v.(json.Number)
		if !ok || strings.ContainsAny(n.String(), ".eE") {
			return wrong
		}
		if len(a.Values) > 0 && !slices.Contains(a.Values, int(number64(v))) {
			return []string{fmt.Sprintf("%s: there is no %v", at, v)}
		}
		if a.Type == Moment && number64(v) <= 0 {
			return wrong
		}
	case Text:
		if s, ok := v.(string); !ok || s == "" {
			return wrong
		}
	case Words:
		list, ok := v.([]any)
		if !ok || slices.ContainsFunc(list, func(v any) bool { _, ok := v.(string); return !ok }) {
			return wrong
		}
	case Inner:
		return a.inside(at, v)
	case Inners:
		list, ok := v.([]any)
		if !ok {
			return wrong
		}
		for i, v := range list {
			if faults := a.inside(fmt.Sprintf("%s[%d]", at, i), v); len(faults) > 0 {
				return faults
			}
		}
	}
	return nil
}

func (a Attribute) inside(at string, v any) []string {
	fields, ok := v.(map[string]any)
	shapes := Shapes()
	i := slices.IndexFunc(shapes, func(o Shape) bool { return o.Name == a.Object })
	if !ok || i < 0 {
		return []string{at + ": it is no " + a.Object}
	}
	return conforms(at+".", fields, shapes[i].Attributes, shapes[i].OneOf)
}

func number64(v any) int64 {
	n, _ := v.(json.Number)
	i, _ := n.Int64()
	return i
}

// Markdown returns the tables as a document.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Attributes of the audit log\n\nMade from egress/audit by `make golden`. Lines follow OCSF " + Version + " (schema.ocsf.io), one JSON object each; every line that is written is\ncompared with these tables by tests. A line has at least one of those that a last row names.\n")
	write := func(attributes []Attribute, oneOf []string) {
		b.WriteString("\n| attribute | OCSF | type | values | ours |\n|---|---|---|---|---|\n")
		for _, a := range attributes {
			ours := a.Ours
			if a.absent() {
				ours = "not written: " + strings.TrimPrefix(ours, "- ")
			}
			kind := string(a.Type)
			if a.Object != "" {
				kind += " " + a.Object
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", a.Name, a.Need, kind, values(a.Values), ours)
		}
		if len(oneOf) > 0 {
			fmt.Fprintf(&b, "| one of | required | | | `%s` |\n", strings.Join(oneOf, "`, `"))
		}
	}
	for _, c := range Classes() {
		fmt.Fprintf(&b, "\n## %d: %s\n", c.UID, c.Name)
		write(c.Attributes, c.OneOf)
	}
	for _, o := range Shapes() {
		fmt.Fprintf(&b, "\n## Object %s\n", o.Name)
		write(o.Attributes, o.OneOf)
	}
	return b.String()
}

// values writes 0 to 7 and 99 so.
func values(list []int) string {
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprintf("0 to %d, 99", list[len(list)-2])
}
