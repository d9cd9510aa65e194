package control

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// protoNames are the protocols of IP that a program is likely to try, by their
// keywords (iana.org/assignments/protocol-numbers).
var protoNames = map[int]string{
	unix.IPPROTO_ICMP:    "icmp",
	unix.IPPROTO_IGMP:    "igmp",
	unix.IPPROTO_TCP:     "tcp",
	unix.IPPROTO_UDP:     "udp",
	unix.IPPROTO_DCCP:    "dccp",
	unix.IPPROTO_GRE:     "gre",
	unix.IPPROTO_ESP:     "esp",
	unix.IPPROTO_ICMPV6:  "ipv6-icmp",
	unix.IPPROTO_SCTP:    "sctp",
	unix.IPPROTO_UDPLITE: "udplite",
}

// ProtoName is the name of a protocol of IP by its number; "ip-N" where it has
// none here.
func ProtoName(number int) string {
	if name, ok := protoNames[number]; ok {
		return name
	}
	return "ip-" + strconv.Itoa(number)
}

// protoNumbers is protoNames the other way round.
var protoNumbers = func() map[string]int {
	numbers := map[string]int{}
	for n, name := range protoNames {
		numbers[name] = n
	}
	return numbers
}()

// ProtoNumber is the number of a protocol of IP by ProtoName's name, or false.
func ProtoNumber(name string) (int, bool) {
	if n, ok := protoNumbers[name]; ok {
		return n, true
	}
	text, ok := strings.CutPrefix(name, "ip-")
	n, err := strconv.Atoi(text)
	return n, ok && err == nil && n >= 0 && n <= 255
}
