package hooks

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/limits"
)

// The fence reports what it refuses of a program's packets to the gateway, by
// NFLOG. The refusal is the kernel's and does not wait for that.
const (
	reportGroup = 0x6e63 // of NFLOG, in the inner namespace
	// reportSize is how much of a packet a report holds, in bytes: the largest
	// IPv4 header and the ports behind it, or IPv6's with some extensions.
	reportSize = 96
	// reportRoom is what the kernel sets aside for one report, in bytes. By
	// default it is a page, and the socket has room for some fifty.
	reportRoom = 512
	// reportQueue is how much may wait for the gateway, in bytes; what finds no
	// room is lost, and the number of the next report tells how many were.
	reportQueue = limits.Reports
)

// From linux/netfilter/nfnetlink_log.h.
const (
	nflogConfig     = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG
	nflogCmd        = 1                            // NFULA_CFG_CMD
	nflogBind       = 1                            // NFULNL_CFG_CMD_BIND
	nflogRoom       = 3                            // NFULA_CFG_NLBUFSIZ
	nflogThreshold  = 5                            // NFULA_CFG_QTHRESH
	nflogFlags      = 6                            // NFULA_CFG_FLAGS
	nflogNumbered   = 1                            // NFULNL_CFG_F_SEQ
	nflogHeaderSize = 16 + 4                       // nlmsghdr, nfgenmsg
)

// openReports opens, in the thread's namespace, the socket on which the kernel
// reports refused packets: each at once and by itself, with a number that rises
// by one.
func openReports() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("cannot hear of refused packets: %w", err)
	}
	f := os.NewFile(uintptr(fd), "reports")
	if err := bindReports(fd); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot hear of refused packets: %w\nthe kernel's module nfnetlink_log is needed", err)
	}
	return f, nil
}

func bindReports(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, reportQueue); err != nil {
		return err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: nflogCmd, Data: []byte{nflogBind}},
		{Type: nflogRoom, Data: binaryutil.BigEndian.PutUint32(reportRoom)},
		{Type: nflogThreshold, Data: binaryutil.BigEndian.PutUint32(1)},
		{Type: nflogFlags, Data: binaryutil.BigEndian.PutUint16(nflogNumbered)},
	})
	if err != nil {
		return err
	}
	host := binary.NativeEndian
	msg := make([]byte, nflogHeaderSize, nflogHeaderSize+len(attrs))
	host.PutUint32(msg[0:], uint32(nflogHeaderSize+len(attrs)))
	host.PutUint16(msg[4:], nflogConfig)
	host.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg[16] = unix.AF_UNSPEC
	binary.BigEndian.PutUint16(msg[18:], reportGroup)
	if err := unix.Sendto(fd, append(msg, attrs...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// The kernel has answered when sendto returns; a report may stand before it.
	answer := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, answer)
		if err != nil {
			return err
		}
		if n >= 20 && host.Uint16(answer[4:]) == unix.NLMSG_ERROR {
			if errno := -int32(host.Uint32(answer[16:])); errno != 0 {
				return unix.Errno(errno)
			}
			return nil
		}
	}
}
