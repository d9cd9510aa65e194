package hooks

import (
	"os"

	"nemoclaw/egress/limits"
	"nemoclaw/egress/netfilter"
)

// reportGroup is where the fence reports what it refuses of a program's packets
// to the gateway, by NFLOG in the inner namespace. The refusal is the kernel's
// and does not wait for that.
const reportGroup = 0x6e63

// openReports opens, in the thread's namespace, the socket of those reports. What
// finds no room there is lost, and the number of the next tells how many were.
func openReports() (*os.File, error) { return netfilter.OpenPackets(reportGroup, limits.Reports) }
