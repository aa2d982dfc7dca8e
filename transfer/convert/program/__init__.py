"""What tools/convert_to_d2.py does with files of any network: inspect, convert or export them."""
